"""From raw files to slices of tensors."""
