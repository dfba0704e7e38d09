"""A table of DataFrames or files, for use from Python, with the kinds of its columns and its tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.checks.arguments import check_argument
from mmoe.data.column_guess import Guess, guess
from mmoe.data.column_options import column_options
from mmoe.data.column_values import values_of
from mmoe.data.csv_guess import guess_options
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import CSV, file_kind, find_files
from mmoe.data.draft import batch_size
from mmoe.data.fraction_guess import USUAL_FRACTIONS
from mmoe.data.frames import table_of_frame
from mmoe.data.split_rules import parse_split
from mmoe.data.suspects import find_suspects
from mmoe.data.table_data import default_settings
from mmoe.data.table_files import read_table
from mmoe.data.task_guess import TaskGuess, guess_task, remark_on_funnels
from mmoe.errors import ArgumentError, UserError, unknown_key
from mmoe.tasks import Task
from mmoe.tasks.serialization import task_from_config, task_to_config

Rows = pd.DataFrame | str | Path | Sequence[str]
# Fields of tasks that are set elsewhere.
NOT_IN_TASKS = {
    "classes": "they are those of the training rows",
    "group_by": "it is an argument of the Table",
}


class Table:
    """Rows with the kinds of their columns and the tasks to learn. `repr` shows both, with remarks.

    Args:
        train: training rows: a DataFrame, or files as in the `train` of a configuration.
        tasks: a mapping from the name of each task to a task, such as `Regression("spend")`, or to the
            column of its label; the kind of the task is then guessed. A list of columns makes tasks with the
            names of their columns.
        test, validation: rows as for `train`, or a rule that takes them from the training rows, such as
            `{"fraction": 0.1, "by": "user_id"}`; see `mmoe.data.split_rules.SplitRule`. The default
            fractions are 0.2 for the test and 0.1 for validation.
        columns: kinds by column, as in a configuration; None leaves a column out. The kinds of the other
            columns are guessed. A label is no input, and another column that a task or a rule names is an
            input only if it is given here.
        main_task: the task whose validation metric chooses the epoch; by default the first.
        weight: a column with the weight of each row in the loss.
        group_by: a column with the group of each row, such as a user's id, for the metric `grouped_auroc`.
        csv: how CSV files are written, as in a configuration.

    Raises:
        UserError: the rows cannot be read, or an argument breaks a rule.
    """

    def __init__(
        self,
        train: Rows,
        tasks: Mapping[str, str | Task] | Sequence[str],
        test: Rows | Mapping[str, Any] | None = None,
        validation: Rows | Mapping[str, Any] | None = None,
        columns: Mapping[str, Any] | None = None,
        main_task: str | None = None,
        weight: str | None = None,
        group_by: str | None = None,
        csv: Mapping[str, Any] | None = None,
    ) -> None:
        by_name = _parse_tasks(tasks)
        is_task = isinstance(main_task, str) and main_task in by_name
        check_argument(
            main_task is None or is_task, "main_task", main_task, f"must be one of {', '.join(by_name)}"
        )
        for name, options in (("columns", columns), ("csv", csv)):
            check_argument(isinstance(options, Mapping | None), name, options, "must be a mapping")
        kinds: dict[str, Any] = _without_numpy(columns or {})
        csv = _without_numpy(csv)
        csv_options = CsvOptions.parse(csv)
        given_rows = {
            "train": train,
            "validation": {"fraction": USUAL_FRACTIONS.validation} if validation is None else validation,
            "test": {"fraction": USUAL_FRACTIONS.test} if test is None else test,
        }
        self._rows = {name: _parse_rows(name, rows) for name, rows in given_rows.items()}
        table = self._rows["train"]
        self._is_csv = False
        if not isinstance(table, pa.Table):
            files = find_files(table)
            self._is_csv = file_kind(files[0]) == CSV
            if self._is_csv:
                csv_options = guess_options(files[0], csv or {})
                csv = asdict(csv_options)
            table = read_table(files, csv_options, keep_bytes=True)
        self._options = {"main_task": main_task, "weight": weight, "group_by": group_by, "csv": csv or None}
        self.num_rows = len(table)
        self._values = {name: values_of(name, table[name]) for name in table.column_names}
        for name, column in (("weight", weight), ("group_by", group_by)):
            if column is not None:
                self._check_column(name, column)
        for name, kind in kinds.items():
            self._check_column("columns", name)
            if kind is not None:
                column_options(name, kind)
        guessed = {name: self._guess_task(name, task) for name, task in by_name.items()}
        remark_on_funnels([one for one in guessed.values() if one])
        named = self._named_tasks(by_name, guessed)
        self.tasks = {name: task_to_config(task) for name, task in named.items()}
        # A task that is given as a task needs no remark about its kind.
        remarks = {
            name: one.remarks for name, one in guessed.items() if one and isinstance(by_name[name], str)
        }
        self._task_remarks: dict[str, list[str]] = {name: [] for name in by_name} | remarks
        used = {name for task in named.values() for name in (task.column, task.where, task.weight)}
        used |= {weight} if weight else set()
        for rule in (validation, test):
            if isinstance(rule, Mapping):
                used |= {str(rule[key]) for key in ("column", "by") if key in rule}
        free = [values for name, values in self._values.items() if name not in used | kinds.keys()]
        self._guesses = [guess(values, self._is_csv) for values in free]
        inputs = [one.values for one in self._guesses if not one.reason]
        self.suspects = find_suspects([one for one in guessed.values() if one], inputs)
        found = {one.values.name: one.to_plain() for one in self._guesses if self._is_input(one)}
        kinds = found | kinds
        self.columns = {name: kinds[name] for name in self._values if kinds.get(name) is not None}

    def __repr__(self) -> str:
        width = max(map(len, self._values))
        lines = [f"Table of {self.num_rows:,} rows"]
        for name, task in self.tasks.items():
            others = {key: value for key, value in task.items() if key not in ("column", "kind")}
            text = f"task {name}: {task['kind']}{_in_brackets(others)}"
            lines.append(f"  {task['column']:<{width}}  {text}{_as_comment(self._task_remarks[name])}")
        remarks = {one.values.name: one.remarks for one in self._guesses}
        for name, kind in self.columns.items():
            options = dict(kind) if isinstance(kind, Mapping) else {"kind": kind}
            text = f"{options.pop('kind', '')}{_in_brackets(options)}"
            lines.append(f"  {name:<{width}}  {text}{_as_comment(remarks.get(name, ()))}")
        for option in ("weight", "group_by"):
            if column := self._options[option]:
                lines.append(f"  {column:<{width}}  {option}")
        for one in self._guesses:
            if not self._is_input(one):
                reason = one.reason or f"gives a label away: {self.suspects[one.values.name]}"
                lines.append(f"  {one.values.name:<{width}}  left out: {reason}")
        return "\n".join(lines)

    def config(self, folder: str) -> dict[str, Any]:
        """The configuration of the data module. DataFrames are named as files in `folder`, the run folder."""
        rows = {}
        for name, given in self._rows.items():
            rows[name] = f"{folder}/data/{name}.parquet" if isinstance(given, pa.Table) else given
        return {
            "_target_": "mmoe.data.table_data.TableData", **default_settings(), **rows, **self._options,
            "batch_size": batch_size(self.num_rows),
            "columns": self.columns, "tasks": self.tasks,
        }  # fmt: skip

    def frames(self, folder: Path) -> dict[Path, pa.Table]:
        """The DataFrames, by the files in the run folder that `config` names."""
        tables = {name: given for name, given in self._rows.items() if isinstance(given, pa.Table)}
        return {folder / "data" / f"{name}.parquet": table for name, table in tables.items()}

    def _check_column(self, argument: str, name: Any) -> None:
        is_column = isinstance(name, str) and name in self._values
        check_argument(is_column, argument, name, unknown_key(str(name), list(self._values)))

    def _guess_task(self, name: str, task: str | Task) -> TaskGuess | None:
        """What the values say about a task; None if its kind is given and the values cannot be a label."""
        column = task if isinstance(task, str) else task.column
        if column not in self._values:
            raise ArgumentError(f"tasks.{name}: column {column!r} {unknown_key(column, list(self._values))}")
        try:
            return guess_task(name, self._values[column], self._is_csv)
        except UserError:
            if isinstance(task, str):
                raise
            return None

    def _named_tasks(self, tasks: Mapping[str, str | Task], guessed: Mapping[str, Any]) -> dict[str, Task]:
        """Each task with its name. A task that is given as a column is the guessed one."""
        named = {}
        for name, task in tasks.items():
            if isinstance(task, Task):
                named[name] = replace(task, name=name)
            else:
                named[name] = task_from_config(name, guessed[name].to_plain())
        return named

    def _is_input(self, one: Guess) -> bool:
        return not one.reason and one.values.name not in self.suspects


def _parse_rows(name: str, given: Any) -> Any:
    """Rows as a configuration has them: a list of files, or a rule. A DataFrame becomes an Arrow table."""
    if isinstance(given, pd.DataFrame):
        try:
            return table_of_frame(given)
        except UserError as error:
            raise ArgumentError(f"{name}: {error}") from None
    if isinstance(given, Mapping) and name != "train":
        rule = _without_numpy(given)
        parse_split(name, rule)
        return rule
    files = [given] if isinstance(given, str | Path) else given
    are_files = isinstance(files, list | tuple) and all(isinstance(f, str | Path) and str(f) for f in files)
    rule = "must be a DataFrame, a file or a list of files"
    rule += "" if name == "train" else ", or a mapping such as {'fraction': 0.1}"
    check_argument(are_files and len(files) > 0, name, given, rule)
    return [str(file) for file in files]


def _without_numpy(value: Any) -> Any:
    """A copy of an option's value with plain numbers and lists, because configurations hold nothing else."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _without_numpy(one) for key, one in value.items()}
    return [_without_numpy(one) for one in value] if isinstance(value, list | tuple) else value


def _parse_tasks(tasks: Any) -> Mapping[str, str | Task]:
    """The tasks by name."""
    is_list = isinstance(tasks, list | tuple) and all(isinstance(name, str) for name in tasks)
    by_name = {name: name for name in tasks} if is_list else tasks
    is_mapping = isinstance(by_name, Mapping) and all(isinstance(name, str) and name for name in by_name)
    rule = "must map names of tasks to tasks or columns, or be a list of columns; all names are text"
    check_argument(is_mapping and len(by_name) > 0, "tasks", tasks, rule)
    for name, task in by_name.items():
        for key, where in NOT_IN_TASKS.items():
            given = getattr(task, key, None)
            check_argument(not given, f"tasks.{name}.{key}", given, f"must be left out; {where}")
        rule = f"must be a column's name, or a task such as mmoe.Regression({name!r})"
        check_argument(isinstance(task, str | Task), f"tasks.{name}", task, rule)
    return by_name


def _in_brackets(options: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key} {value}" for key, value in options.items())
    return f" ({listed})" if listed else ""


def _as_comment(remarks: Sequence[str]) -> str:
    return f"  # {'; '.join(remarks)}" if remarks else ""
