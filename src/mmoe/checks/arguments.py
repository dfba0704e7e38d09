"""Checks of arguments and options.

A wrong argument raises ArgumentError with its name, its value and the rule. Checks of numbers accept numpy
numbers and return plain Python numbers, because checkpoints hold nothing else.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from mmoe.errors import ArgumentError, UserError

LARGEST_SEED = 2**32 - 1  # the limit of numpy and Lightning


def as_names(value: Any) -> list[str]:
    """The names that an option holds: a list, a single name, or null. A name may be a number."""
    values = [value] if isinstance(value, str | int | float) else value or []
    return [str(one) for one in values]


def is_number(value: Any, kind: type) -> bool:
    """Whether the value is a number of this kind, `Integral` or `Real`, and not a boolean."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_integers(least: int, **values: Any) -> list[int]:
    """Check integers of at least `least`."""
    for name, value in values.items():
        if not is_number(value, Integral) or value < least:
            raise ArgumentError(f"{name}={value}: must be an integer of at least {least}")
    return [int(value) for value in values.values()]


def check_seeds(**values: Any) -> list[int]:
    """Check seeds: integers from 0 to LARGEST_SEED."""
    seeds = check_integers(0, **values)
    for name, seed in zip(values, seeds, strict=True):
        if seed > LARGEST_SEED:
            raise ArgumentError(f"{name}={seed}: must be at most {LARGEST_SEED}")
    return seeds


def check_replicas(replicas: Any, seed: Any) -> None:
    """Check the number of replicas and the seed of the first one; replica r has the seed `seed + r`."""
    check_seeds(seed=seed)
    check_integers(1, replicas=replicas)
    check_seeds(**{"seed + replicas - 1": seed + replicas - 1})


def check_widths(min_layers: int, **values: Any) -> list[list[int]]:
    """Check lists of at least `min_layers` positive integers."""
    found = []
    for name, value in values.items():
        widths = value.tolist() if hasattr(value, "tolist") else value  # a numpy array
        is_list = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not is_list or not all(is_number(width, Integral) and width > 0 for width in widths):
            raise ArgumentError(f"{name}={widths}: must be a list of integers of at least 1")
        if len(widths) < min_layers:
            raise ArgumentError(f"{name}=[]: must have the width of at least one layer")
        found.append([int(width) for width in widths])
    return found


def check_probabilities(**values: Any) -> list[float]:
    """Check numbers in [0, 1)."""
    for name, value in values.items():
        if not is_number(value, Real) or not 0 <= value < 1:
            raise ArgumentError(f"{name}={value}: must be a number in [0, 1)")
    return [float(value) for value in values.values()]


def check_finite(least: float, **values: Any) -> list[float]:
    """Check finite numbers of at least `least`."""
    for name, value in values.items():
        if not is_number(value, Real) or not least <= value < math.inf:
            raise ArgumentError(f"{name}={value}: must be a finite number of at least {least:g}")
    return [float(value) for value in values.values()]


def check_argument(is_valid: bool, name: str, value: Any, rule: str) -> None:
    """Raise ArgumentError, on one line, unless the value of an argument is valid."""
    if not is_valid:
        text = " ".join(str(value).split())
        raise ArgumentError(f"{name}={text if len(text) <= 60 else text[:57] + '...'}: {rule}")


def check_matrix(x: Any, width: int) -> None:
    """Check that a model's input is a matrix [B, width]."""
    if x.ndim != 2 or x.shape[1] != width:
        raise UserError(f"x of shape {list(x.shape)}: must be [B, {width}], one row of inputs per example")
