"""Rules for arguments: each raises ValueError with the argument's name, its value and the rule."""

import math
from collections.abc import Sequence
from typing import Any


def check_integers(least: int, **values: Any) -> None:
    """Integers of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value}: must be an integer of at least {least}")


def check_widths(least: int, **values: Any) -> None:
    """Lists of at least `least` positive integers."""
    for name, widths in values.items():
        integers = isinstance(widths, Sequence) and all(isinstance(w, int) and w > 0 for w in widths)
        if not integers:
            value = list(widths) if isinstance(widths, tuple) else widths
            raise ValueError(f"{name}={value}: must be a list of integers of at least 1")
        if len(widths) < least:
            raise ValueError(f"{name}=[]: must name the width of at least one layer")


def check_probabilities(**values: Any) -> None:
    """Numbers in [0, 1)."""
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name}={value}: must be a number in [0, 1)")


def check_finite(least: float, **values: Any) -> None:
    """Finite numbers of at least `least`."""
    for name, value in values.items():
        if not _is_number(value) or not least <= value < math.inf:
            raise ValueError(f"{name}={value}: must be a finite number of at least {least:g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
