"""The schema of a data set: its columns, its tasks and the origin of its rows.

A run stores its schema as JSON (`schema.json`), and encodes new rows with it exactly as it encoded its own.
The classes check their values when they are constructed.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from itertools import accumulate
from typing import Any

from mmoe.checks import fields as check
from mmoe.data.columns import Categorical, Numeric, column_rank
from mmoe.errors import ArgumentError, UserError
from mmoe.tasks import Task
from mmoe.tasks.serialization import task_from_json, task_to_json

ORIGINS = ("official", "sample", "synthetic", "custom")


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
        check.fields(self, "", **parts, files=check.digests, num_rows=check.counts)
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
    def code_offsets(self) -> list[int]:
        """The first code of each categorical column, followed by `num_codes`."""
        return [0, *accumulate(column.num_codes for column in self.categorical)]

    @property
    def num_codes(self) -> int:
        """The number of codes of all categorical columns; also the code of an unseen level."""
        return self.code_offsets[-1]

    @property
    def column_of_position(self) -> list[int]:
        """For each position in a row's levels, the number of its categorical column."""
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

    def for_other_rows(self) -> "Schema":
        """The schema for rows that it was not fitted to, such as new rows to evaluate on.

        It names no files, so that the rows are encoded anew instead of taken from the cache of the training.
        """
        return replace(self, files={})

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


def _plain_values(column: Categorical | Numeric) -> dict[str, Any]:
    """The fields of a column, without the copies of its levels that `asdict` makes."""
    return {one.name: getattr(column, one.name) for one in fields(column)}


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
