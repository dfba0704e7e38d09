"""The levels, numbers and dates that a column of a frame holds."""
