"""Checks of arguments and of the fields of dataclasses."""
