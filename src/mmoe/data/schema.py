"""What a data set is: its columns, its tasks and where its rows came from.

Everything that a run needs to read new rows the way it read its own is here, and it round-trips
through JSON (`schema.json` of a run folder). Nothing here knows the census columns.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Categorical:
    """A column of levels; `levels` are those of the training file, sorted.

    A level that the training file does not have is unseen: it is encoded as no level at all. `mode` is the
    most frequent level, or empty where that is not known; results depend on it by rounding alone.
    """

    name: str
    levels: tuple[str, ...]
    mode: str = field(default="", compare=False)


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, with its scale and bin edges in the training file (population `std`).

    `bins` are increasing edges, quantiles of the distinct values: `len(bins) - 1` bins, at least one.
    A constant column has std 1 and the one bin [value, value + 1]. `values` are the frequent ones, sorted.
    """

    name: str
    mean: float
    std: float
    bins: tuple[float, ...]
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Task:
    """A label made from `column`, by its kind.

    `binary`: 1 where the column has one of the `positive` levels; `regression`: the column's number.

    Raises:
        ValueError: an unknown kind, a binary task without positive levels, or a regression with them.
    """

    name: str
    column: str
    positive: tuple[str, ...] = ()
    kind: str = "binary"

    def __post_init__(self) -> None:
        if self.kind not in ("binary", "regression"):
            raise ValueError(f"tasks.{self.name}.kind={self.kind}: must be binary or regression")
        if self.is_binary and not self.positive:
            raise ValueError(f"tasks.{self.name}.positive=[]: must name at least one level of {self.column}")
        if self.positive and not self.is_binary:
            raise ValueError(f"tasks.{self.name}.positive={list(self.positive)}: a regression has no levels")

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1."""
        return self.kind == "binary"


@dataclass(frozen=True)
class Schema:
    """Columns and tasks of a data set, in the order of the tensors' columns.

    `rows` says where the rows came from: `official` (UCI's two files, by their row counts), `sample`
    (the bundled one), `synthetic` (a generator) or `custom`. `files` maps file names to their SHA-256,
    `num_rows` splits to rows.
    """

    categorical: tuple[Categorical, ...]
    numeric: tuple[Numeric, ...]
    tasks: tuple[Task, ...]
    rows: str = "custom"
    files: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_levels(self) -> int:
        """Levels of all categorical columns together; also the code of an unseen level."""
        return sum(len(column.levels) for column in self.categorical)

    def to_json(self) -> str:
        """The schema as JSON text, which `from_json` reads back to an equal schema."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        kinds: dict[str, Callable[..., Any]] = {"categorical": Categorical, "numeric": Numeric, "tasks": Task}
        for key, kind in kinds.items():
            items = [{k: tuple(v) if isinstance(v, list) else v for k, v in i.items()} for i in values[key]]
            values[key] = tuple(kind(**item) for item in items)
        return cls(**values)
