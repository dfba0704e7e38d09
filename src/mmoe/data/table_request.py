"""A table to be encoded: its files, columns and tasks, and the rules that choose its splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mmoe.data.column_options import LEVEL_KINDS, ColumnOptions
from mmoe.data.csv_columns import TextRules
from mmoe.data.csv_options import CsvOptions
from mmoe.data.schema import Schema
from mmoe.data.split_rules import SplitRule
from mmoe.data.splits import CONFIG_KEYS
from mmoe.data.table_splits import choose_all
from mmoe.tasks import Task


@dataclass(frozen=True)
class Request:
    """A table to be encoded.

    Attributes:
        files: the files of each source: `train`, and `validation` and `test` if they have their own.
        rules: the rules of the splits `test` and `val`, in this order, if they have no files of their own.
        csv, columns, tasks, num_bins, split_seed: see `TableData`.
        schema: the schema of a run to encode with; None: fit one.
    """

    files: Mapping[str, Sequence[str]]
    rules: Mapping[str, SplitRule]
    csv: CsvOptions
    columns: Mapping[str, ColumnOptions]
    tasks: Sequence[Task]
    num_bins: int
    split_seed: int
    schema: Schema | None

    @property
    def days_first(self) -> dict[str, bool | None]:
        """The option `day_first` of each column; see `ColumnOptions`."""
        return {name: options.day_first for name, options in self.columns.items()}

    def rules_of(self, source: str) -> dict[str, SplitRule]:
        """The rules that take rows from a source, by split."""
        return {split: rule for split, rule in self.rules.items() if rule.of == source}

    def other_columns(self, source: str) -> list[str]:
        """The columns that tasks and split rules need, except `group_by`. Some may be inputs too."""
        names = [name for task in self.tasks for name in (task.column, task.where, task.weight) if name]
        names += [name for rule in self.rules_of(source).values() for name in rule.needed_columns]
        return list(dict.fromkeys(names))

    def all_columns(self, source: str) -> list[str]:
        """The inputs, the other columns, and the groups if the source has validation or test rows."""
        names = [*self.columns, *self.other_columns(source)]
        if source != "train" or self.rules_of(source):
            names += [task.group_by for task in self.tasks if task.group_by]
        return list(dict.fromkeys(names))

    def source_of(self, split: str) -> str:
        """The source of a split's rows: `train`, `validation` or `test`."""
        return self.rules[split].of if split in self.rules else CONFIG_KEYS[split]

    def rest(self, source: str) -> str:
        """The split of the rows that no rule takes from a source."""
        return next(split for split, key in CONFIG_KEYS.items() if key == source)

    def positions(self, source: str, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """The sorted positions in the frame of a source, for each split that has rows in it."""
        rules, rest = self.rules_of(source), self.rest(source)
        return choose_all(rules, rest, frame, self.split_seed, self.days_first)


def text_rules(csv: CsvOptions, columns: Mapping[str, ColumnOptions], tasks: Sequence[Task]) -> TextRules:
    """How to convert CSV columns: levels stay text as written, and columns of numbers must hold numbers."""
    text = [name for name, one in columns.items() if one.kind in LEVEL_KINDS]
    numbers = [name for name, one in columns.items() if one.kind == "numeric"]
    return TextRules(csv, text, [*numbers, *(task.column for task in tasks if task.holds_numbers)])
