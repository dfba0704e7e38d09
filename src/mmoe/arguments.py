"""Rules for arguments: each raises UserError with the argument's name, its value and the rule.

Numbers may be numpy's. Each rule returns them as plain ones, in the order of the arguments: modules and
checkpoints hold nothing else.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from mmoe.errors import UserError

LARGEST_SEED = 2**32 - 1  # numpy's, and so Lightning's


def check_integers(least: int, **values: Any) -> list[int]:
    """Integers of at least `least`."""
    for name, value in values.items():
        if not is_a(Integral, value) or value < least:
            raise UserError(f"{name}={value}: must be an integer of at least {least}")
    return [int(value) for value in values.values()]


def check_seeds(**values: Any) -> list[int]:
    """Integers that every random generator takes as a seed."""
    for name, value in zip(values, check_integers(0, **values), strict=True):
        if value > LARGEST_SEED:
            raise UserError(f"{name}={value}: must be at most {LARGEST_SEED}")
    return check_integers(0, **values)


def check_widths(least: int, **values: Any) -> list[list[int]]:
    """Lists of at least `least` positive integers."""
    found = []
    for name, given in values.items():
        widths = given.tolist() if hasattr(given, "tolist") else given  # an array
        integers = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not integers or not all(is_a(Integral, width) and width > 0 for width in widths):
            value = list(widths) if isinstance(widths, tuple) else widths
            raise UserError(f"{name}={value}: must be a list of integers of at least 1")
        if len(widths) < least:
            raise UserError(f"{name}=[]: must name the width of at least one layer")
        found.append([int(width) for width in widths])
    return found


def check_probabilities(**values: Any) -> list[float]:
    """Numbers in [0, 1)."""
    for name, value in values.items():
        if not is_a(Real, value) or not 0 <= value < 1:
            raise UserError(f"{name}={value}: must be a number in [0, 1)")
    return [float(value) for value in values.values()]


def check_finite(least: float, **values: Any) -> list[float]:
    """Finite numbers of at least `least`."""
    for name, value in values.items():
        if not is_a(Real, value) or not least <= value < math.inf:
            raise UserError(f"{name}={value}: must be a finite number of at least {least:g}")
    return [float(value) for value in values.values()]


def check_matrix(x: Any, width: int) -> None:
    """A model's inputs [B, width]."""
    if x.ndim != 2 or x.shape[1] != width:
        raise UserError(
            f"x of shape {list(x.shape)}: must be [B, {width}], a row of inputs for each of B rows"
        )


def is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a kind of number; true and false are of none."""
    return isinstance(value, kind) and not isinstance(value, bool)
