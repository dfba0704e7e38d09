"""Checks of values in a schema. They raise ArgumentError, and return the value in plain Python types.

`where` is the place of the value in the schema, such as `numeric.age.std`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from numbers import Real
from operator import lt
from typing import Any

import numpy as np

from mmoe.checks.arguments import check_integers, is_number
from mmoe.errors import ArgumentError

MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_MAGNITUDE = 1e38  # the difference of two larger numbers may overflow in float32


def fields(instance: object, prefix: str, **checks: Callable[[str, Any], Any]) -> None:
    """Check fields of a frozen dataclass that is being constructed, and store what the checks return."""
    for name, checked in checks.items():
        object.__setattr__(instance, name, checked(f"{prefix}{name}", getattr(instance, name)))


def text(where: str, value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{where}={value!r}: must be text that is not empty")
    return value


def any_text(where: str, value: Any) -> str:
    """Text, which may be empty."""
    if not isinstance(value, str):
        raise ArgumentError(f"{where}={value!r}: must be text")
    return value


def unique(where: str, names: Sequence[str]) -> None:
    """Names that all differ."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ArgumentError(f"{where}: must have different names; {count} have the name {name!r}")


def sequence(where: str, values: Any) -> tuple[Any, ...]:
    """A list or a tuple."""
    if not isinstance(values, list | tuple):
        raise ArgumentError(f"{where}={values!r}: must be a list")
    return tuple(values)


def texts(where: str, values: Any) -> tuple[str, ...]:
    """A list of text."""
    for value in sequence(where, values):
        if not isinstance(value, str):
            raise ArgumentError(f"{where}: must be a list of text, holds {value!r}")
    return tuple(values)


def levels(where: str, values: Any) -> tuple[str, ...]:
    """A list of unique levels, sorted as text or, if all are integers, by value."""
    found = texts(where, values)
    if not (_increase(found) or _increase_as_integers(found)):
        listed = ", ".join(map(repr, found[:8])) + ", ..." * (len(found) > 8)
        raise ArgumentError(f"{where}: must be unique and sorted, are {listed}")
    return found


def _increase(values: Sequence[Any]) -> bool:
    return all(map(lt, values, islice(values, 1, None)))


def _increase_as_integers(levels: Sequence[str]) -> bool:
    are_integers = all(re.fullmatch("-?[0-9]{1,18}", level) for level in levels)
    return are_integers and _increase([(int(level), level) for level in levels])


def number(where: str, value: Any) -> float:
    """A number that is finite in float32."""
    if not is_number(value, Real) or not abs(value) <= MAX_FLOAT32:
        raise ArgumentError(f"{where}={value!r}: must be a finite number in the range of float32")
    return float(value)


def count(where: str, value: Any) -> int:
    """An integer of at least 0."""
    return check_integers(0, **{where: value})[0]


def positive(where: str, value: Any) -> int:
    """An integer of at least 1."""
    return check_integers(1, **{where: value})[0]


def flag(where: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{where}={value!r}: must be true or false")
    return value


def table(where: str, values: Any) -> tuple[tuple[float, ...], ...]:
    """A list of lists of numbers, all of one length."""
    rows = sequence(where, values)
    found = tuple(
        tuple(number(f"{where}[{i}][{k}]", value) for k, value in enumerate(sequence(f"{where}[{i}]", row)))
        for i, row in enumerate(rows)
    )
    if len({len(row) for row in found}) > 1:
        raise ArgumentError(f"{where}: must be lists of one length")
    return found


def increasing(where: str, values: Any) -> tuple[float, ...]:
    """A list of numbers that increase even after rounding to float32."""
    numbers = tuple(number(f"{where}[{i}]", value) for i, value in enumerate(sequence(where, values)))
    rounded = np.array(numbers, np.float32)
    increases = rounded[:-1] < rounded[1:]
    if not increases.all():
        i = int(np.argmin(increases))
        what = f"{numbers[i]} is followed by {numbers[i + 1]}"
        raise ArgumentError(f"{where}: must increase as float32, {what}")
    return numbers


def bins(where: str, values: Any) -> tuple[float, ...]:
    """Two or more increasing edges of bins whose widths, and 1 / widths, are finite in float32."""
    edges = increasing(where, values)
    if len(edges) < 2:
        raise ArgumentError(f"{where}={list(edges)}: must have at least 2 edges")
    with np.errstate(over="ignore", divide="ignore"):
        widths = np.diff(np.array(edges, np.float32))
        usable = np.isfinite(widths) & np.isfinite(1 / widths)
    if not usable.all():
        i = int(np.argmin(usable))
        rule = "must be bins whose width and 1 / width are finite in float32"
        raise ArgumentError(f"{where}: {rule}, one is from {edges[i]} to {edges[i + 1]}")
    return edges


def positive_number(where: str, value: Any) -> float:
    """A number that is above 0 even after rounding to float32."""
    checked = number(where, value)
    if not np.float32(checked) > 0:
        raise ArgumentError(f"{where}={checked}: must be above 0")
    return checked


def digests(where: str, values: Any) -> dict[str, str]:
    """SHA-256 digests by file name."""
    for name, digest in mapping(where, values).items():
        if not isinstance(digest, str):
            raise ArgumentError(f"{where}.{name}={digest}: must be text, the SHA-256 of a file")
    return dict(values)


def counts(where: str, values: Any) -> dict[str, int]:
    """Row counts by name."""
    return {k: count(f"{where}.{k}", v) for k, v in mapping(where, values).items()}


def mapping(where: str, values: Any) -> Mapping[str, Any]:
    """A mapping with text keys."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ArgumentError(f"{where}={values}: must be a mapping with text keys")
    return values
