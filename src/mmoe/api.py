"""Train on a table from Python: DataFrames, or files.

table = mmoe.Table(train, tasks={"click": "clicked", "spend": mmoe.Regression("spend", where="clicked")})
run = mmoe.fit(table, "runs/mine", "model.num_experts=4")
scores = run.predict(new)
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pyarrow import parquet

from mmoe import CONF_DIR
from mmoe.atomic import remove_if_empty, write
from mmoe.cli.command import ignore_warnings
from mmoe.data.column_guess import Guess, guess
from mmoe.data.column_values import values_of
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import find_files
from mmoe.data.frames import table_of_frame
from mmoe.data.suspects import find_suspects
from mmoe.data.table_files import read_table
from mmoe.data.task_guess import TaskGuess, guess_task
from mmoe.errors import ArgumentError, UserError, first_line
from mmoe.tasks import Task, task_from_config, task_to_config
from mmoe.training.stored_config import FOLDER

if TYPE_CHECKING:
    from mmoe.run import Run

Rows = pd.DataFrame | str | Path | Sequence[str]


class Table:
    """Rows with the kinds of their columns and the tasks to learn. `repr` shows the kinds and the tasks.

    Args:
        train: training rows: a DataFrame, or files as in the `train` of a configuration.
        tasks: a mapping from the name of each task to a task, such as `Regression("spend")`, or to the
            column of its label; the kind of the task is then guessed. A list of columns makes tasks with the
            names of their columns.
        test, validation: rows as for `train`, or a rule that takes them from the training rows, such as
            `{"fraction": 0.1, "by": "user_id"}`; see `mmoe.data.split_rules.SplitRule`. The default
            fractions are 0.2 for the test and 0.1 for validation.
        columns: kinds by column, as in a configuration; None leaves a column out. The kinds of the other
            columns are guessed.
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
        self._rows = {
            "train": train,
            "validation": {"fraction": 0.1} if validation is None else validation,
            "test": {"fraction": 0.2} if test is None else test,
        }
        self._options = {
            "main_task": main_task, "weight": weight, "group_by": group_by, "csv": dict(csv) if csv else None
        }  # fmt: skip
        table = self._read(train)
        self.num_rows = len(table)
        self._values = {name: values_of(name, table[name]) for name in table.column_names}
        by_name = {name: name for name in tasks} if isinstance(tasks, list | tuple) else tasks
        if not isinstance(by_name, Mapping) or not by_name:
            expected = "must map names of tasks to tasks or columns, or be a list of columns"
            raise ArgumentError(f"tasks={tasks}: {expected}")
        guessed = {name: self._guess_task(name, task) for name, task in by_name.items()}
        named = self._named_tasks(by_name, guessed)
        self.tasks = {name: task_to_config(task) for name, task in named.items()}
        used = {str(task[key]) for task in self.tasks.values() for key in ("column", "weight") if key in task}
        used |= {weight} if weight else set()
        for rule in (validation, test):
            if isinstance(rule, Mapping) and "column" in rule:
                used.add(str(rule["column"]))
        if group_by is not None and group_by not in self._values:
            raise ArgumentError(f"group_by={group_by}: must be one of {', '.join(self._values)}")
        given = dict(columns or {})
        for name in given:
            if name not in self._values:
                raise ArgumentError(f"columns.{name}: must be one of {', '.join(self._values)}")
        self._guesses = [guess(v) for name, v in self._values.items() if name not in used | given.keys()]
        inputs = [one.values for one in self._guesses if not one.reason]
        self.suspects = find_suspects([one for one in guessed.values() if one], inputs)
        found = {one.values.name: one.to_plain() for one in self._guesses if self._is_input(one)}
        kinds = found | given
        self.columns = {name: kinds[name] for name in self._values if kinds.get(name) is not None}

    def __repr__(self) -> str:
        width = max(map(len, self._values))
        lines = [f"Table of {self.num_rows:,} rows"]
        for name, task in self.tasks.items():
            others = {key: value for key, value in task.items() if key not in ("column", "kind")}
            lines.append(f"  {task['column']:<{width}}  task {name}: {task['kind']}{_in_brackets(others)}")
        for name, kind in self.columns.items():
            options = dict(kind) if isinstance(kind, Mapping) else {"kind": kind}
            lines.append(f"  {name:<{width}}  {options.pop('kind', '')}{_in_brackets(options)}")
        for one in self._guesses:
            if not self._is_input(one):
                reason = one.reason or f"gives a label away: {self.suspects[one.values.name]}"
                lines.append(f"  {one.values.name:<{width}}  left out: {reason}")
        return "\n".join(lines)

    def config(self) -> dict[str, Any]:
        """The configuration of the data module. DataFrames are named as files in the run folder."""
        rows = {}
        for name, given in self._rows.items():
            is_frame = isinstance(given, pd.DataFrame)
            rows[name] = f"{FOLDER}/data/{name}.parquet" if is_frame else _plain(given)
        return {
            "_target_": "mmoe.data.table.datamodule", **rows, **self._options, "columns": self.columns,
            "tasks": self.tasks, "num_bins": 48, "split_seed": 0,
            "cache_dir": "${oc.env:MMOE_CACHE_DIR,null}", "batch_size": 256, "eval_batch_size": 8192,
            "resident": True, "seed": "${seed}",
        }  # fmt: skip

    def write_frames(self, folder: Path) -> None:
        """Write the DataFrames as Parquet to `folder`/data."""
        for name, given in self._rows.items():
            if isinstance(given, pd.DataFrame):
                table = table_of_frame(given)
                path = folder / "data" / f"{name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, partial(parquet.write_table, table))

    def _read(self, rows: Any) -> pa.Table:
        if isinstance(rows, pd.DataFrame):
            return table_of_frame(rows)
        return read_table(find_files(rows), CsvOptions.parse(self._options["csv"]))  # type: ignore[arg-type]

    def _guess_task(self, name: str, task: str | Task) -> TaskGuess | None:
        """What the values say about a task; None if its labels have a single value."""
        column = task if isinstance(task, str) else task.column
        if column not in self._values:
            raise ArgumentError(f"tasks.{name}: column {column!r} must be one of {', '.join(self._values)}")
        try:
            return guess_task(name, self._values[column])
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


def fit(table: Table, folder: Path | str, *overrides: str) -> "Run":
    """Train on a table, as `python -m mmoe.train` does, and return the run.

    Args:
        table: the rows and the tasks.
        folder: the run folder, which must not hold a run.
        overrides: of the configuration, such as `"model.num_experts=4"` or `"model=ple"`.

    Raises:
        UserError: the folder holds a run, or an override or a value of the table is invalid.
    """
    from mmoe.train import train

    started = time.perf_counter()
    folder = Path(folder)
    if (folder / "config.yaml").exists():
        raise UserError(f"folder={folder}: must not hold a run; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    table.write_frames(folder)
    try:
        with warnings.catch_warnings(), hydra_config(table, folder, overrides) as config:
            ignore_warnings()
            run = train(config, folder, False, started)
    except UserError:
        for path in sorted(folder.glob("data/*.parquet")):
            path.unlink()
        remove_if_empty(folder / "data")
        remove_if_empty(folder)
        raise
    assert run is not None
    return run


@contextmanager
def hydra_config(table: Table, folder: Path, overrides: Sequence[str]) -> Iterator[DictConfig]:
    """Compose the configuration of a training, and tell Hydra's resolvers about the run folder."""
    before = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "data" / "table.yaml"
        path.parent.mkdir()
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(table.config())), "utf-8")
        given = [f"hydra.searchpath=[file://{temporary}]", "data=table", *overrides]
        try:
            with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
                config = compose("train", given, return_hydra_config=True)
        except Exception as error:
            raise UserError(f"overrides: {first_line(error)}") from None
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = str(folder.absolute())
    try:
        HydraConfig.instance().set_config(config)
        OmegaConf.set_struct(config, False)
        yield OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    finally:
        HydraConfig.instance().cfg = before


def _plain(given: Any) -> Any:
    if isinstance(given, Mapping):
        return dict(given)
    return [str(part) for part in given] if isinstance(given, list | tuple) else str(given)


def _in_brackets(options: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key} {value}" for key, value in options.items())
    return f" ({listed})" if listed else ""
