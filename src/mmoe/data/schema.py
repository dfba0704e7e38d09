"""The schema of a data set: its columns, its tasks and the origin of its rows.

A run stores its schema as JSON (`schema.json`), and encodes new rows with it exactly as it encoded its own.
The classes check their values when they are constructed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import accumulate
from typing import Any

from mmoe.data import schema_checks as check
from mmoe.errors import ArgumentError, UserError

ORIGINS = ("official", "sample", "synthetic", "custom")


@dataclass(frozen=True)
class Categorical:
    """A categorical column.

    `levels` is the vocabulary: the levels in the training file, sorted as text or as integers. Any other
    level, and a missing one, is encoded as unseen. `mode` is the most frequent level, or empty if unknown.
    Results do not depend on the mode, except for rounding.

    Raises:
        ArgumentError: a value has the wrong type, or the levels are not unique and sorted.
    """

    name: str
    levels: tuple[str, ...]
    mode: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_and_store(self, "categorical.", name=check.text)
        where = f"categorical.{self.name}"
        _check_and_store(self, f"{where}.", levels=check.levels)
        if self.mode not in ("", *self.levels):
            raise ArgumentError(f"{where}.mode={self.mode!r}: must be one of its levels, or empty")


@dataclass(frozen=True)
class Numeric:
    """A numeric column, with statistics of the training file.

    `std` is the population standard deviation. `bins` are the increasing edges of the quantile bins: N + 1
    edges make N bins. A constant column has std 1 and a single bin, which begins at its value. `values` are
    the frequent values, sorted.

    Raises:
        ArgumentError: a value has the wrong type or is not finite, `std` is not above 0, or the edges or the
            frequent values do not increase.
    """

    name: str
    mean: float
    std: float
    bins: tuple[float, ...]
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_and_store(self, "numeric.", name=check.text)
        statistics = {"mean": check.number, "std": check.std, "bins": check.bins, "values": check.increasing}
        _check_and_store(self, f"numeric.{self.name}.", **statistics)


@dataclass(frozen=True)
class Task:
    """A task whose label comes from `column`.

    A `binary` label is 1 if the column holds one of the `positive` levels. A `regression` label is the number
    in the column; the loss scales it by `mean` and `std` of the training file.

    Raises:
        ArgumentError: the kind is unknown, a value has the wrong type, a binary task has no positive levels
            or has a scale, or a regression has levels.
    """

    name: str
    column: str
    positive: tuple[str, ...] = ()
    kind: str = "binary"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_and_store(self, "tasks.", name=check.text)
        where = f"tasks.{self.name}"
        checks = {"column": check.text, "positive": check.texts, "mean": check.number, "std": check.std}
        _check_and_store(self, f"{where}.", **checks)
        if self.kind not in ("binary", "regression"):
            raise ArgumentError(f"{where}.kind={self.kind}: must be binary or regression")
        if self.is_binary and not self.positive:
            raise ArgumentError(f"{where}.positive=[]: must name at least one level of {self.column}")
        if self.positive and not self.is_binary:
            raise ArgumentError(f"{where}.positive={list(self.positive)}: must be empty for a regression")
        if self.is_binary and self.is_scaled:
            raise ArgumentError(f"{where}: must have mean 0 and std 1, because it is binary")

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1."""
        return self.kind == "binary"

    @property
    def is_scaled(self) -> bool:
        """Whether the network predicts (label - mean) / std rather than the label."""
        return (self.mean, self.std) != (0, 1)


@dataclass(frozen=True)
class Schema:
    """Columns and tasks of a data set, in the order in which a `Batch` holds them.

    `rows` is the origin of the rows: `official` (UCI's two files, recognised by their row counts), `sample`
    (the bundled one), `synthetic` (generated) or `custom`. `files` maps file names to SHA-256 digests, and
    `num_rows` maps splits to row counts.

    Raises:
        ArgumentError: two columns or two tasks have the same name, or a value has the wrong type.
    """

    categorical: tuple[Categorical, ...]
    numeric: tuple[Numeric, ...]
    tasks: tuple[Task, ...]
    rows: str = "custom"
    files: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = dict.fromkeys(PARTS, check.sequence)
        _check_and_store(self, "", **parts, files=check.digests, num_rows=check.counts)
        for key, kind in PARTS.items():
            if not all(isinstance(part, kind) for part in getattr(self, key)):
                raise ArgumentError(f"{key}: must be a list of {kind.__name__}")
        check.unique("columns", [c.name for c in self.categorical] + [n.name for n in self.numeric])
        check.unique("tasks", [task.name for task in self.tasks])
        if self.rows not in ORIGINS:
            raise ArgumentError(f"rows={self.rows}: must be one of {', '.join(ORIGINS)}")

    @property
    def level_offsets(self) -> list[int]:
        """The code of each categorical column's first level, followed by `num_levels`; C + 1 integers."""
        return [0, *accumulate(len(column.levels) for column in self.categorical)]

    @property
    def num_levels(self) -> int:
        """Number of levels in all categorical columns; also the code of an unseen or missing level."""
        return self.level_offsets[-1]

    def to_json(self) -> str:
        """The schema as JSON; `from_json` restores an equal schema."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

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
            values[key] = tuple(kind(**_check_keys(kind, f"{key}[{i}]", item)) for i, item in items)
        return cls(**values)


PARTS: dict[str, type[Any]] = {"categorical": Categorical, "numeric": Numeric, "tasks": Task}


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
