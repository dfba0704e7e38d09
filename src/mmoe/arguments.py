"""Check constructor arguments. A wrong value raises ArgumentError with its name, the value and the rule.

A check accepts numpy numbers and returns plain Python numbers, because checkpoints hold nothing else.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from mmoe.errors import ArgumentError, UserError

LARGEST_SEED = 2**32 - 1  # the limit of numpy and Lightning


def check_integers(least: int, **values: Any) -> list[int]:
    """Check integers of at least `least`."""
    for name, value in values.items():
        if not is_a(Integral, value) or value < least:
            raise ArgumentError(f"{name}={value}: must be an integer of at least {least}")
    return [int(value) for value in values.values()]


def check_seeds(**values: Any) -> list[int]:
    """Check seeds: integers from 0 to LARGEST_SEED."""
    seeds = check_integers(0, **values)
    for name, seed in zip(values, seeds, strict=True):
        if seed > LARGEST_SEED:
            raise ArgumentError(f"{name}={seed}: must be at most {LARGEST_SEED}")
    return seeds


def check_widths(least: int, **values: Any) -> list[list[int]]:
    """Check lists of at least `least` positive integers."""
    found = []
    for name, value in values.items():
        widths = value.tolist() if hasattr(value, "tolist") else value  # a numpy array
        is_list = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not is_list or not all(is_a(Integral, width) and width > 0 for width in widths):
            shown = list(widths) if isinstance(widths, tuple) else widths
            raise ArgumentError(f"{name}={shown}: must be a list of integers of at least 1")
        if len(widths) < least:
            raise ArgumentError(f"{name}=[]: must have the width of at least one layer")
        found.append([int(width) for width in widths])
    return found


def check_probabilities(**values: Any) -> list[float]:
    """Check numbers in [0, 1)."""
    for name, value in values.items():
        if not is_a(Real, value) or not 0 <= value < 1:
            raise ArgumentError(f"{name}={value}: must be a number in [0, 1)")
    return [float(value) for value in values.values()]


def check_finite(least: float, **values: Any) -> list[float]:
    """Check finite numbers of at least `least`."""
    for name, value in values.items():
        if not is_a(Real, value) or not least <= value < math.inf:
            raise ArgumentError(f"{name}={value}: must be a finite number of at least {least:g}")
    return [float(value) for value in values.values()]


def check_matrix(x: Any, width: int) -> None:
    """Check that a model's input is a matrix [B, width]."""
    if x.ndim != 2 or x.shape[1] != width:
        raise UserError(f"x of shape {list(x.shape)}: must be [B, {width}], one row of inputs per example")


def is_a(kind: type, value: Any) -> bool:
    """Whether the value is a number of this kind, and not a boolean."""
    return isinstance(value, kind) and not isinstance(value, bool)
