"""What a data set is: its columns, its tasks and where its rows came from.

Everything that a run needs to read new rows the way it read its own is here, and it round-trips
through JSON (`schema.json` of a run folder). Nothing here knows the census columns.

All classes check what they are made of. Numbers become float32 in a network, so they are checked as such.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np

from mmoe.arguments import is_a
from mmoe.errors import UserError

LARGEST = float(np.finfo(np.float32).max)
ORIGINS = ("official", "sample", "synthetic", "custom")


@dataclass(frozen=True)
class Categorical:
    """A column of levels; `levels` are those of the training file, sorted as text or as integers.

    A level that the training file does not have is unseen: it is encoded as no level at all, and so is a
    missing one. `mode` is the most frequent level, or empty where that is not known; results depend on it by
    rounding alone.

    Raises:
        UserError: a value is not of its type, or the levels are not unique and sorted.
    """

    name: str
    levels: tuple[str, ...]
    mode: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_name("categorical.name", self.name)
        where = f"categorical.{self.name}"
        object.__setattr__(self, "levels", _texts(f"{where}.levels", self.levels))
        if not _are_sorted(self.levels):
            raise UserError(f"{where}.levels: must be unique and sorted, are {_start(self.levels)}")
        if self.mode not in ("", *self.levels):
            raise UserError(f"{where}.mode={self.mode!r}: must be one of its levels, or empty")


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, with its scale and bin edges in the training file (population `std`).

    `bins` are increasing edges, quantiles of the distinct values: `len(bins) - 1` bins, at least one.
    A constant column has std 1 and the one bin [value, value + 1], or up to the next number that float32 has.
    `values` are the frequent ones, sorted.

    Raises:
        UserError: a value is not of its type or not finite, `std` is not above 0, or edges or frequent values
            do not increase.
    """

    name: str
    mean: float
    std: float
    bins: tuple[float, ...]
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_name("numeric.name", self.name)
        where = f"numeric.{self.name}"
        _set_scale(self, where)
        for key in ("bins", "values"):
            object.__setattr__(self, key, _increasing(f"{where}.{key}", getattr(self, key)))
        if len(self.bins) < 2:
            raise UserError(f"{where}.bins={list(self.bins)}: must be at least 2 edges")
        with np.errstate(over="ignore", divide="ignore"):
            widths = np.diff(np.array(self.bins, np.float32))
            usable = np.isfinite(widths) & np.isfinite(1 / widths)
        if not usable.all():
            i = int(np.argmin(usable))
            between = f"{self.bins[i]} to {self.bins[i + 1]}"
            raise UserError(
                f"{where}.bins: must be bins with a width and 1 / width that float32 has, not {between}"
            )


@dataclass(frozen=True)
class Task:
    """A label made from `column`, by its kind.

    `binary`: 1 where the column has one of the `positive` levels; `regression`: the column's number, whose
    `mean` and `std` in the training file scale it for the loss.

    Raises:
        UserError: an unknown kind, a value that is not of its type, a binary task without positive levels or
            with a scale, or a regression with levels.
    """

    name: str
    column: str
    positive: tuple[str, ...] = ()
    kind: str = "binary"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_name("tasks.name", self.name)
        where = f"tasks.{self.name}"
        _check_name(f"{where}.column", self.column)
        object.__setattr__(self, "positive", _texts(f"{where}.positive", self.positive))
        if self.kind not in ("binary", "regression"):
            raise UserError(f"{where}.kind={self.kind}: must be binary or regression")
        if self.is_binary and not self.positive:
            raise UserError(f"{where}.positive=[]: must name at least one level of {self.column}")
        if self.positive and not self.is_binary:
            raise UserError(f"{where}.positive={list(self.positive)}: a regression has no levels")
        _set_scale(self, where)
        if self.is_binary and self.is_scaled:
            raise UserError(f"{where}: must have mean 0 and std 1, for it is binary")

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1."""
        return self.kind == "binary"

    @property
    def is_scaled(self) -> bool:
        """Whether the logit is another number than the prediction: (prediction - mean) / std."""
        return (self.mean, self.std) != (0, 1)


@dataclass(frozen=True)
class Schema:
    """Columns and tasks of a data set, in the order of the tensors' columns.

    `rows` says where the rows came from: `official` (UCI's two files, by their row counts), `sample`
    (the bundled one), `synthetic` (a generator) or `custom`. `files` maps file names to their SHA-256,
    `num_rows` splits to rows.

    Raises:
        UserError: two columns or two tasks have one name, or a value is not of its type.
    """

    categorical: tuple[Categorical, ...]
    numeric: tuple[Numeric, ...]
    tasks: tuple[Task, ...]
    rows: str = "custom"
    files: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, kind in PARTS.items():
            parts = _sequence(key, getattr(self, key))
            if not all(isinstance(part, kind) for part in parts):
                raise UserError(f"{key}: must be a list of {kind.__name__}")
            object.__setattr__(self, key, parts)
        _check_unique("columns", [c.name for c in self.categorical] + [n.name for n in self.numeric])
        _check_unique("tasks", [task.name for task in self.tasks])
        if self.rows not in ORIGINS:
            raise UserError(f"rows={self.rows}: must be one of {', '.join(ORIGINS)}")
        for key in ("files", "num_rows"):
            if not isinstance(getattr(self, key), Mapping):
                raise UserError(f"{key}={getattr(self, key)}: must map text to values")
        for name, digest in self.files.items():
            if not isinstance(name, str) or not isinstance(digest, str):
                raise UserError(f"files.{name}={digest}: must be text, the SHA-256 of a file")
        for name, count in self.num_rows.items():
            if not isinstance(name, str) or not is_a(Integral, count) or count < 0:
                raise UserError(f"num_rows.{name}={count}: must be an integer of at least 0")
        object.__setattr__(self, "num_rows", {name: int(count) for name, count in self.num_rows.items()})

    @property
    def num_levels(self) -> int:
        """Levels of all categorical columns together; also the code of an unseen or missing level."""
        return sum(len(column.levels) for column in self.categorical)

    def to_json(self) -> str:
        """The schema as JSON text, which `from_json` reads back to an equal schema."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Read what `to_json` wrote.

        Raises:
            UserError: the text is not that, or breaks a rule of these classes.
        """

        def refuse(constant: str) -> NoReturn:
            raise UserError(f"{constant}: must be a finite number")

        try:
            values = json.loads(text, parse_constant=refuse)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:  # a ValueError also of an integer of 5,000 digits
            raise UserError(f"must be a schema as JSON ({error})") from None
        values = _arguments(cls, "schema", values)
        for key, kind in PARTS.items():
            items = enumerate(_sequence(key, values[key]))
            values[key] = tuple(kind(**_arguments(kind, f"{key}[{i}]", item)) for i, item in items)
        return cls(**values)


PARTS: dict[str, type[Any]] = {"categorical": Categorical, "numeric": Numeric, "tasks": Task}


def _arguments(kind: type, where: str, values: Any) -> dict[str, Any]:
    """The members of a JSON object, which must be the fields of a class."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be an object of JSON, is {type(values).__name__}")
    for one in fields(kind):
        if one.name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise UserError(f"{where}: must have a {one.name!r}")
    names = [one.name for one in fields(kind)]
    for name in values:
        if name not in names:
            raise UserError(f"{where}.{name}: must be one of {', '.join(names)}")
    return dict(values)


def _check_name(where: str, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}={name!r}: must be text that is not empty")


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{what}: must have different names, {count} are {name!r}")


def _sequence(where: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}={values!r}: must be a list")
    return tuple(values)


def _texts(where: str, values: Any) -> tuple[str, ...]:
    for value in _sequence(where, values):
        if not isinstance(value, str):
            raise UserError(f"{where}: must be a list of text, holds {value!r}")
    return tuple(values)


def _number(where: str, value: Any) -> float:
    if not is_a(Real, value) or not abs(value) <= LARGEST:
        raise UserError(f"{where}={value!r}: must be a finite number that float32 has")
    return float(value)


def _increasing(where: str, values: Any) -> tuple[float, ...]:
    numbers = tuple(_number(f"{where}[{i}]", value) for i, value in enumerate(_sequence(where, values)))
    rounded = np.array(numbers, np.float32)
    increases = rounded[:-1] < rounded[1:]
    if not increases.all():
        i = int(np.argmin(increases))
        raise UserError(f"{where}: must increase as float32, {numbers[i]} is followed by {numbers[i + 1]}")
    return numbers


def _set_scale(column: Numeric | Task, where: str) -> None:
    for key in ("mean", "std"):
        object.__setattr__(column, key, _number(f"{where}.{key}", getattr(column, key)))
    if not np.float32(column.std) > 0:
        raise UserError(f"{where}.std={column.std}: must be above 0")


def _are_sorted(levels: Sequence[str]) -> bool:
    if len(set(levels)) < len(levels):
        return False
    if all(re.fullmatch("-?[0-9]{1,18}", level) for level in levels):
        numbers = [int(level) for level in levels]
        return numbers == sorted(numbers) or list(levels) == sorted(levels)
    return list(levels) == sorted(levels)


def _start(values: Iterable[object]) -> str:
    """The first few, for an error."""
    some = [repr(value) for value in values]
    return ", ".join(some[:8]) + (", ..." if len(some) > 8 else "")
