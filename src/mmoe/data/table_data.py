"""The data module of a table: CSV, Parquet or Arrow files with one row for each example.

The YAML that `python -m mmoe.describe` writes has every argument, with comments.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mmoe.checks.arguments import check_integers, check_seeds
from mmoe.data import cache
from mmoe.data.column_guess import guess
from mmoe.data.column_options import ColumnOptions, column_options, to_plain
from mmoe.data.column_values import values_of
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import find_files, name_files
from mmoe.data.datamodule import DataModule
from mmoe.data.encode_shards import load_or_encode
from mmoe.data.encode_table import encode_table
from mmoe.data.engine import check_engine, open_engine
from mmoe.data.file_states import FileState
from mmoe.data.fraction_guess import USUAL_FRACTIONS
from mmoe.data.memory import memory_size, memory_to_encode
from mmoe.data.raw_rows import RowFormat
from mmoe.data.schema import Schema
from mmoe.data.split_rules import SplitRule, parse_split
from mmoe.data.splits import Dataset
from mmoe.data.table_files import locate, read_names, read_table
from mmoe.data.table_request import Request, text_rules
from mmoe.data.table_source import Source, states_of
from mmoe.errors import ArgumentError, UserError
from mmoe.raw.frame_column import column_of
from mmoe.tasks import Task, with_groups
from mmoe.tasks.serialization import task_from_config, task_to_json

MAX_GUESSED_ROWS = 2**18  # the kinds of the columns of streamed rows are guessed from this many rows


class TableData(DataModule):
    """Data module of a table.

    Args:
        train: a file, a glob, a folder, or a list of these.
        validation, test: files as for `train`, or a rule that takes rows from the training or the test files;
            see `split_rules.SplitRule`.
        columns: the kind of each input column, or a mapping with its options; see `ColumnOptions`. None: the
            columns that no task or split uses, with the kinds that `describe` guesses. Constants, row
            numbers, ids and empty columns are left out.
        tasks: for each task name, a mapping with the label's `column` and options; see `mmoe.tasks`. A task
            that is None is left out.
        main_task: the task that the others support; its validation metric chooses the epoch. None: the first.
        weight: a column with the weight of each row in the loss of the tasks that have none of their own.
        group_by: a column with the group of each validation and test row, such as a user's id. Binary tasks
            then have the metric `grouped_auroc`; see `mmoe.metrics.grouped_auroc`.
        csv: how CSV files are written; see `CsvOptions`.
        num_bins: upper limit for the quantile bins of a numeric column.
        split_seed: seed of random splits.
        cache_dir: directory for encoded rows; None is the user's cache directory.
        stream: whether rows are encoded in shards and read from disk during training: true, false, or `auto`,
            which streams them if they might not fit into memory.
        engine: what encodes the shards: `local`, the cores of this machine, or `dask`.
        dask_address: the address of a Dask scheduler, such as tcp://host:8786; None starts one here.
        schema: the schema of a run, to encode with; None fits one to the training rows.
        batch_size, eval_batch_size, resident, seed: see `DataModule`.

    Raises:
        ArgumentError: an argument breaks a rule.
    """

    takes_schema = True

    def __init__(
        self,
        *,
        train: str | Sequence[str],
        test: Any,
        tasks: Mapping[str, Mapping[str, Any] | None] | None,
        validation: Any = None,
        columns: Mapping[str, Any] | None = None,
        main_task: str | None = None,
        weight: str | None = None,
        group_by: str | None = None,
        csv: Mapping[str, Any] | None = None,
        num_bins: int = 48,
        split_seed: int = 0,
        cache_dir: str | None = None,
        stream: bool | str = "auto",
        engine: str = "local",
        dask_address: str | None = None,
        schema: Schema | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        resident: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(self._load_or_encode, batch_size, eval_batch_size, resident, seed)
        if not isinstance(stream, bool) and stream != "auto":
            raise ArgumentError(f"stream={stream}: must be true, false or auto")
        check_engine(engine, dask_address)
        self.stream, self.engine, self.dask_address = stream, engine, dask_address
        self.tasks = _parse_tasks(tasks, main_task, weight)
        if group_by is not None:
            self.tasks = with_groups(self.tasks, group_by)
        given = parse_split("train", train)
        if isinstance(given, SplitRule):
            raise ArgumentError(f"train={train}: must be a file or a list of files")
        self.train_files = given
        self.validation = parse_split(
            "validation", {"fraction": USUAL_FRACTIONS.validation} if validation is None else validation
        )
        self.test = parse_split("test", test)
        self.validation_fraction = getattr(self.validation, "fraction", None)
        for name, rule in (("validation", self.validation), ("test", self.test)):
            if isinstance(rule, SplitRule) and rule.of == "test" and not isinstance(self.test, list):
                raise ArgumentError(f"{name}.of=test: needs a test file")
        if columns is not None and not isinstance(columns, Mapping):
            raise ArgumentError(f"columns={columns}: must map names of columns to their kinds")
        self.columns = None
        if columns is not None:
            given_columns = {name: one for name, one in columns.items() if one is not None}
            self.columns = {name: column_options(name, one) for name, one in given_columns.items()}
            if not self.columns:
                raise ArgumentError("columns={}: must name at least one column")
            self._check_inputs(self.columns)
        self.csv = CsvOptions.parse(csv)
        check_integers(2, num_bins=num_bins)
        check_seeds(split_seed=split_seed)
        self.num_bins, self.split_seed = num_bins, split_seed
        self.cache_dir = cache.directory(cache_dir)
        self.given_schema = schema

    @property
    def cache_name(self) -> str:
        """How names of cache files begin."""
        return "table"

    def raw_column(self, name: str, split: str) -> pd.Series | None:
        """A column of the files for a split's rows; None if it does not exist or the rows are in shards."""
        sources = self._sources()
        source = sources[self._request(sources).source_of(split)]
        if name not in source.names() or split not in self.dataset.positions:
            return None
        column = column_of(source.read([name]), name)
        return column.iloc[self.dataset.positions[split].numpy()].reset_index(drop=True)

    def _request(self, sources: Mapping[str, Source]) -> Request:
        """The table to be encoded."""
        given = {"test": self.test, "val": self.validation}
        return Request(
            {name: list(source.files.values()) for name, source in sources.items()},
            {split: rule for split, rule in given.items() if isinstance(rule, SplitRule)},
            self.csv,
            self.columns or {},
            self.tasks,
            self.num_bins,
            self.split_seed,
            self.given_schema,
        )

    def _sources(self) -> dict[str, Source]:
        """The sources by name: `train`, and `validation` and `test` if they have files of their own."""
        given = {"train": self.train_files, "validation": self.validation, "test": self.test}
        sources = {}
        for name, patterns in given.items():
            if isinstance(patterns, SplitRule):
                continue
            try:
                files = find_files(patterns)
            except UserError as error:
                raise UserError(f"data.{name}: {error}") from None
            # Without folders, so that a folder may move; with them if two files have the same name.
            short = [Path(file).name for file in files]
            keys = short if len(set(short)) == len(files) else files
            named = {f"{name}/{key}": file for key, file in zip(keys, files, strict=True)}
            names, read = partial(read_names, files, self.csv), partial(self._read, files)
            place = partial(locate, files, self.csv)
            sources[name] = Source(name_files(files), named, names, read, place)
        return sources

    def _read(self, files: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        """The columns as a frame of Arrow arrays. Levels stay text as written in CSV."""
        rules = text_rules(self.csv, self.columns or {}, self.tasks)
        table = read_table(files, self.csv, columns, rules.text, rules.numbers)
        frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
        return frame

    @classmethod
    def row_format(cls, config: Mapping[str, Any], schema: Schema) -> RowFormat:
        """How rows to predict are written, for a run with these arguments and this schema."""
        csv = CsvOptions.parse(config.get("csv"))
        return RowFormat(lambda _: csv, may_be_missing=True)

    def _load_or_encode(self) -> Dataset:
        """The encoded rows, from the cache if the same files were encoded before with the same options."""
        sources = self._sources()
        is_streamed = self._is_streamed(sources)
        if self.columns is None:
            self.columns = self._guess_columns(sources, MAX_GUESSED_ROWS if is_streamed else None)
        states = states_of(sources)
        digests = {name: state.digest for name, state in states.items()}
        key = self._cache_key(states, digests)
        if not is_streamed:
            build = partial(self._encode, sources, digests)
            return cache.load_or_build(self.cache_dir, self.cache_name, key, build)
        folder = cache.entry(self.cache_dir, f"{self.cache_name}-shards", key)
        engine = partial(open_engine, self.engine, self.dask_address)
        return load_or_encode(folder, self._request(sources), digests, engine)

    def _encode(self, sources: Mapping[str, Source], digests: Mapping[str, str]) -> Dataset:
        """The rows, encoded in memory."""
        dataset = encode_table(sources, self._request(sources))
        origin = self._row_origin(dataset.schema.num_rows)
        schema = replace(dataset.schema, row_origin=origin, files=dict(digests))
        return replace(dataset, schema=schema)

    def _cache_key(self, states: Mapping[str, FileState], digests: Mapping[str, str]) -> dict[str, Any]:
        """All that the encoded rows depend on."""
        assert self.columns is not None
        key: dict[str, Any] = {
            "files": [[name, *state] for name, state in states.items()],
            "splits": [str(self.validation), str(self.test), self.split_seed],
            "columns": [*to_plain(self.columns).items()],  # inputs have this order
            "tasks": [task_to_json(task) for task in self.tasks],
            "csv": str(self.csv),
            "num_bins": self.num_bins,
        }
        # A schema that was fitted to these files is left out, so that the entry from training is found. See
        # `Schema.for_other_rows`.
        if self.given_schema and self.given_schema.files != digests:
            key["schema"] = self.given_schema.to_json()
        return key

    def _is_streamed(self, sources: Mapping[str, Source]) -> bool:
        """Whether the rows are encoded in shards."""
        if self.stream == "auto":
            count = len(self.columns or sources["train"].names())
            files = [path for source in sources.values() for path in source.files.values()]
            return memory_to_encode(files, count) > memory_size() / 2
        return bool(self.stream)

    def _row_origin(self, num_rows: Mapping[str, int]) -> str:
        """The `row_origin` of the schema, judged by the number of rows in each split."""
        return "custom"

    def _guess_columns(
        self, sources: Mapping[str, Source], max_rows: int | None = None
    ) -> dict[str, ColumnOptions]:
        """The kinds of all columns that no task or split uses, from the first `max_rows` rows or from all."""
        train, request = sources["train"], self._request(sources)
        others = {name for rule in request.rules.values() for name in rule.needed_columns}
        others |= set(request.other_columns("train"))
        names = [name for name in train.names() if name not in others]
        if self.given_schema:  # which was perhaps fitted with other split rules
            names = [name for name in names if name in self.given_schema.input_columns]
        if not names:
            raise UserError(f"{train.name}: must have a column that no task or split uses")
        files = list(train.files.values())
        table = read_table(files, self.csv, names, max_rows=max_rows, keep_bytes=True)
        guesses = [guess(values_of(name, table[name])) for name in names]
        inputs = [one for one in guesses if not one.reason]
        if not inputs:
            left_out = f"column {guesses[0].values.name} is left out: {guesses[0].reason}"
            raise UserError(f"{train.name}: must have a column that is an input; {left_out}")
        found = {one.values.name: column_options(one.values.name, one.to_plain()) for one in inputs}
        if self.given_schema:
            # An input of the schema is not in `found` if it is constant in these rows, or if a rule names it.
            found = {name: ColumnOptions(kind) for name, kind in _kinds(self.given_schema).items()} | found
        return {name: found[name] for name in train.names() if name in found}

    def _check_inputs(self, columns: Iterable[str]) -> None:
        for task in self.tasks:
            if task.column in columns:
                what = f"the column that the label of task {task.name} is made from"
                raise ArgumentError(f"columns: {task.column!r} is {what}, so it must not be an input")


def _kinds(schema: Schema) -> dict[str, str]:
    """The kinds of a schema's input columns."""
    kinds = {}
    for column in schema.categorical:
        kind = "multi" if column.is_multi else "categorical"
        kinds[column.raw_name] = "datetime" if column.part else kind
    return kinds | {one.name: "datetime" if one.is_datetime else "numeric" for one in schema.numeric}


def _parse_tasks(
    tasks: Mapping[str, Mapping[str, Any] | None] | None, main_task: str | None, weight: str | None
) -> list[Task]:
    """The tasks, the main task first."""
    if tasks is not None and not isinstance(tasks, Mapping):
        raise ArgumentError(f"tasks={tasks}: must map names of tasks to options, such as {{column: clicked}}")
    found = [task_from_config(name, one) for name, one in (tasks or {}).items() if one is not None]
    if not found:
        raise ArgumentError("tasks={}: must name at least one task")
    names = [task.name for task in found]
    if main_task is not None and main_task not in names:
        raise ArgumentError(f"main_task={main_task}: must be one of {', '.join(names)}")
    if weight:
        found = [task if task.weight else replace(task, weight=weight) for task in found]
    return sorted(found, key=lambda task: task.name != main_task) if main_task else found


def default_settings() -> dict[str, Any]:
    """The settings of a table that have a default, as they stand in a configuration."""
    parameters = inspect.signature(TableData).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    del defaults["schema"]  # not a setting: a `Run` gives its schema to read its rows
    return defaults | {"cache_dir": "${oc.env:MMOE_CACHE_DIR,null}", "seed": "${seed}"}
