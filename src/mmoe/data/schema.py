"""The schema of a data set: its columns, its tasks and the origin of its rows.

A run stores its schema as JSON (`schema.json`), and encodes new rows with it exactly as it encoded its own.
The classes check their values when they are constructed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mmoe.data import schema_checks as check
from mmoe.data.dates import UNITS, DateFormat
from mmoe.errors import ArgumentError, UserError
from mmoe.tasks import Task, task_from_json, task_to_json

if TYPE_CHECKING:
    import pandas as pd

ORIGINS = ("official", "sample", "synthetic", "custom")
DATE_PARTS = ("year", "month", "weekday", "hour")
TARGET_ENCODINGS = ("target", "one_hot_and_target")
NUMBER_ENCODINGS = ("standard", "piecewise_linear", "piecewise_linear_and_values")
RARE = "(rare)"  # the name of the code of rare and unseen levels


@dataclass(frozen=True)
class Categorical:
    """A categorical column. It has a code for each level. By default, each code is an input.

    Attributes:
        name: the name of the column.
        levels: the vocabulary: the levels in the training rows, sorted as text or as integers.
        mode: the most frequent code in the training rows, counted from 0. Results do not depend on it, except
            for rounding.
        source: the column of the raw rows; empty if it has the same `name`.
        part: the part of a date and time that is the level: `year`, `month`, `weekday` or `hour`.
        buckets: if above 0, there is no vocabulary: a hash of the level is its code.
        has_missing: training rows had missing values, which have a code of their own.
        has_rare: training rows had levels that are too rare for the vocabulary. Rare and unseen levels share
            one code.
        size: if above 0, the inputs are a learned vector of this size, not one input for each code.
        is_multi: a row has several levels.
        separator: the text between two levels of a row; empty for lists.
        max_values: the largest number of levels in a row; 1 unless `is_multi`.
        encoding: `target`: the inputs are statistics of a row's level. `one_hot_and_target`: one input for
            each code, and these statistics. Empty: neither.
        statistics: for each code, numbers computed from the labels and the number of its training rows; see
            `target_statistics`. Empty without an encoding.

    Without `has_missing`, a missing value is encoded as unseen; without `has_rare`, an unseen level has no
    code, and all its inputs are 0.

    Raises:
        ArgumentError: a value has the wrong type or is out of range, or the levels are not unique and sorted.
    """

    name: str
    levels: tuple[str, ...]
    mode: int = field(default=0, compare=False)
    source: str = ""
    part: str = ""
    buckets: int = 0
    has_missing: bool = False
    has_rare: bool = False
    size: int = 0
    is_multi: bool = False
    separator: str = ""
    max_values: int = 1
    encoding: str = ""
    statistics: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        _check_and_store(self, "categorical.", name=check.text)
        where = f"categorical.{self.name}"
        counts = dict.fromkeys(("mode", "buckets", "size"), check.count)
        flags = dict.fromkeys(("has_missing", "has_rare", "is_multi"), check.flag)
        _check_and_store(self, f"{where}.", levels=check.levels, max_values=check.positive, **counts, **flags)
        _check_and_store(self, f"{where}.", source=check.any_text, separator=check.any_text)
        if self.part not in ("", *DATE_PARTS):
            raise ArgumentError(f"{where}.part={self.part}: must be one of {', '.join(DATE_PARTS)}, or empty")
        if self.buckets and (self.levels or self.has_rare):
            raise ArgumentError(f"{where}.buckets={self.buckets}: must be 0 for a column with levels")
        if self.max_values > 1 and not self.is_multi:
            raise ArgumentError(f"{where}.max_values={self.max_values}: must be 1, because it is not multi")
        if self.encoding not in ("", *TARGET_ENCODINGS):
            rule = f"must be one of {', '.join(TARGET_ENCODINGS)}, or empty"
            raise ArgumentError(f"{where}.encoding={self.encoding}: {rule}")
        if self.encoding and self.size:
            raise ArgumentError(f"{where}.size={self.size}: must be 0 with encoding={self.encoding}")
        _check_and_store(self, f"{where}.", statistics=check.table)
        if self.statistics and not (self.encoding and len(self.statistics) == self.num_codes):
            rule = f"must have {self.num_codes if self.encoding else 0} entries"
            raise ArgumentError(f"{where}.statistics: {rule}, has {len(self.statistics)}")
        if self.mode >= max(1, self.num_codes):
            raise ArgumentError(
                f"{where}.mode={self.mode}: must be below {self.num_codes}, the number of codes"
            )

    @property
    def raw_name(self) -> str:
        """The name of the column in the raw rows."""
        return self.source or self.name

    @property
    def num_codes(self) -> int:
        """The number of codes: levels or buckets, then missing, then rare."""
        return (self.buckets or len(self.levels)) + self.has_missing + self.has_rare

    @property
    def is_one_hot(self) -> bool:
        """Whether each code is an input."""
        return not self.size and self.encoding != "target"

    @cached_property
    def index(self) -> "pd.Index[Any]":
        """The levels, to look up their codes."""
        import pandas as pd

        return pd.Index(self.levels, dtype=object)

    @property
    def code_names(self) -> list[str | None]:
        """The level of each code; None for a bucket and for missing values."""
        named: list[str | None] = [None] * self.buckets if self.buckets else list(self.levels)
        return named + [None] * self.has_missing + [RARE] * self.has_rare


@dataclass(frozen=True)
class Numeric:
    """A numeric column, with statistics of the training rows.

    Attributes:
        name: the name of the column.
        mean, std: the mean and the population standard deviation.
        bins: the increasing edges of the quantile bins: N + 1 edges make N bins.
        values: the frequent values, sorted.
        origin: a number that is subtracted before a number is rounded to float32, and before the statistics
            are computed. It is 0, unless float32 would round different large numbers to the same number.
        has_missing: training rows had missing numbers. One more input is 1 where the number is missing.
        is_datetime: the raw column holds dates, which become days since 1970.
        unit: the unit of Unix times in a column of dates: `s`, `ms`, `us` or `ns`; empty if there were none.
        day_first: in a column of dates, 1/2/2025 is the first of February.
        encoding: one of `NUMBER_ENCODINGS`; empty: the encoding that `Inputs` gives to all other numbers.

    A constant or empty column has std 1 and a single bin, which begins at its value.

    Raises:
        ArgumentError: a value has the wrong type or is not finite, `std` is not above 0, or the edges or the
            frequent values do not increase.
    """

    name: str
    mean: float
    std: float
    bins: tuple[float, ...]
    values: tuple[float, ...] = ()
    origin: float = 0.0
    has_missing: bool = False
    is_datetime: bool = False
    unit: str = ""
    day_first: bool = False
    encoding: str = ""

    def __post_init__(self) -> None:
        _check_and_store(self, "numeric.", name=check.text)
        for key, allowed in (("encoding", NUMBER_ENCODINGS), ("unit", UNITS)):
            if getattr(self, key) not in ("", *allowed):
                rule = f"must be one of {', '.join(allowed)}, or empty"
                raise ArgumentError(f"numeric.{self.name}.{key}={getattr(self, key)}: {rule}")
        statistics = {"mean": check.number, "std": check.std, "bins": check.bins, "values": check.increasing}
        flags = dict.fromkeys(("has_missing", "is_datetime", "day_first"), check.flag)
        _check_and_store(self, f"numeric.{self.name}.", origin=check.number, **statistics, **flags)

    @property
    def raw_name(self) -> str:
        """The name of the column in the raw rows."""
        return self.name

    @property
    def date_format(self) -> DateFormat | None:
        """How the dates of the raw column are written; None if it holds numbers."""
        return DateFormat(self.unit, self.day_first) if self.is_datetime else None


@dataclass(frozen=True)
class Schema:
    """Columns and tasks of a data set, in the order in which a `Batch` holds them.

    Categorical columns that are one-hot come first, then those with a learned vector (`size` above 0), then
    those with statistics alone (the encoding `target`).

    `row_origin` says where the rows are from: `official` (UCI's two files, recognised by their row counts),
    `sample` (the bundled one), `synthetic` (generated) or `custom`. `files` maps file names to SHA-256
    digests, and `num_rows` maps splits to row counts.

    Raises:
        ArgumentError: two columns or two tasks have the same name, the columns are in another order, or a
            value has the wrong type.
    """

    categorical: tuple[Categorical, ...]
    numeric: tuple[Numeric, ...]
    tasks: tuple[Task, ...]
    row_origin: str = "custom"
    files: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = dict.fromkeys(PARTS, check.sequence)
        _check_and_store(self, "", **parts, files=check.digests, num_rows=check.counts)
        for key, kind in PARTS.items():
            if not all(isinstance(part, kind) for part in getattr(self, key)):
                raise ArgumentError(f"{key}: must be a list of {kind.__name__}")
        check.unique("columns", [c.name for c in self.categorical] + [n.name for n in self.numeric])
        for task in self.tasks:
            task.check_fitted()
        check.unique("tasks", [task.name for task in self.tasks])
        ranks = [column_rank(column) for column in self.categorical]
        if ranks != sorted(ranks):
            rule = "one-hot columns must come first, then those with a size, then those with statistics alone"
            raise ArgumentError(f"categorical: {rule}")
        if self.row_origin not in ORIGINS:
            raise ArgumentError(f"row_origin={self.row_origin}: must be one of {', '.join(ORIGINS)}")

    @property
    def level_offsets(self) -> list[int]:
        """The first code of each categorical column, followed by `num_levels`; C + 1 integers."""
        return [0, *accumulate(column.num_codes for column in self.categorical)]

    @property
    def num_levels(self) -> int:
        """Number of codes in all categorical columns; also the code of an unseen level."""
        return self.level_offsets[-1]

    @property
    def level_positions(self) -> list[int]:
        """For each position in a row's levels, the number of its categorical column; P integers."""
        return [i for i, column in enumerate(self.categorical) for _ in range(column.max_values)]

    @property
    def num_one_hot(self) -> int:
        """Number of one-hot columns; they come first."""
        return sum(column.is_one_hot for column in self.categorical)

    @property
    def input_columns(self) -> list[str]:
        """The columns of the raw rows that the inputs are computed from."""
        columns: list[Categorical | Numeric] = [*self.categorical, *self.numeric]
        return list(dict.fromkeys(column.raw_name for column in columns))

    @property
    def label_columns(self) -> list[str]:
        """The columns of the raw rows that the labels and their weights come from."""
        names = [name for task in self.tasks for name in (task.column, task.where, task.weight) if name]
        return list(dict.fromkeys(names))

    def to_json(self) -> str:
        """The schema as JSON, with a line for each column; `from_json` restores an equal schema."""
        to_text = partial(json.dumps, ensure_ascii=False)
        texts = {one.name: to_text(getattr(self, one.name)) for one in fields(self) if one.name not in PARTS}
        for key, kind in PARTS.items():
            to_plain = task_to_json if kind is Task else _plain_values
            items = ",\n  ".join(to_text(to_plain(item)) for item in getattr(self, key))
            texts[key] = f"[\n  {items}\n ]"
        return "{\n " + ",\n ".join(f'"{key}": {text}' for key, text in texts.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Restore a schema from its JSON.

        Raises:
            UserError: the text is not the JSON of a valid schema.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # an integer of 5,000 digits raises ValueError too
            raise UserError(f"must be a schema as JSON ({error})") from None
        values = _check_keys(cls, "schema", values)
        for key, kind in PARTS.items():
            items = enumerate(check.sequence(key, values[key]))
            if kind is Task:
                values[key] = tuple(task_from_json(f"{key}[{i}]", item) for i, item in items)
            else:
                values[key] = tuple(kind(**_check_keys(kind, f"{key}[{i}]", item)) for i, item in items)
        return cls(**values)


PARTS: dict[str, type[Any]] = {"categorical": Categorical, "numeric": Numeric, "tasks": Task}


def column_rank(column: Categorical) -> int:
    """Orders the categorical columns: one-hot (0), then with a size (1), then with statistics alone (2)."""
    return 0 if column.is_one_hot else 1 if column.size else 2


def _plain_values(column: Categorical | Numeric) -> dict[str, Any]:
    """The fields of a column, without the copies of its levels that `asdict` makes."""
    return {one.name: getattr(column, one.name) for one in fields(column)}


def _check_and_store(instance: object, prefix: str, **checks: Callable[[str, Any], Any]) -> None:
    """Check fields of a frozen dataclass that is being constructed, and store what the checks return."""
    for name, checked in checks.items():
        object.__setattr__(instance, name, checked(f"{prefix}{name}", getattr(instance, name)))


def _check_keys(kind: type, where: str, values: Any) -> dict[str, Any]:
    """The values of a JSON object, whose keys must be the fields of a dataclass."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a JSON object, is {type(values).__name__}")
    for one in fields(kind):
        if one.name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise UserError(f"{where}: must have the key {one.name!r}")
    names = [one.name for one in fields(kind)]
    for name in values:
        if name not in names:
            raise UserError(f"{where}.{name}: must be one of {', '.join(names)}")
    return dict(values)
