"""The Census-Income (KDD) data set: population surveys of 1994 and 1995.

UCI data set 117. Its census-income.names describes 41 columns and the label.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from mmoe.data import census_layout, headerless_csv
from mmoe.data.census_files import (
    COLUMNS,
    FILE_NAMES,
    INCOME,
    NUMERIC,
    OFFICIAL_ROWS,
    Files,
    find_census_files,
)
from mmoe.data.column_options import ColumnOptions
from mmoe.data.raw_rows import RowFormat
from mmoe.data.schema import Schema
from mmoe.data.table_data import TableData
from mmoe.data.table_source import Source
from mmoe.errors import ArgumentError, RowError, UserError


class CensusData(TableData):
    """The table of census rows; conf/data/census.yaml gives every argument.

    The test file is split 1:1 into validation and test rows (paper, section 6.3).

    Args:
        dir: directory of the two files; None downloads them.
        source: `auto`, `official` (never the bundled sample) or `sample`.
        url: UCI's archive of the data set.
        cache_dir: directory for downloads and encoded rows; None is the user's cache directory.
        features: the input columns.
        level_encoding: the encoding of the categorical columns; see `ColumnOptions`.
        tasks, main_task, num_bins: see `TableData`.
        split_seed: seed of the split of the test file.
        schema: the schema of a run, to encode with; None fits one to the training file.
        batch_size, eval_batch_size, resident, seed: see `DataModule`.

    Raises:
        ArgumentError: an argument breaks a rule.
    """

    def __init__(
        self,
        *,
        dir: str | None,
        source: str,
        url: str,
        cache_dir: str | None,
        features: Sequence[str],
        tasks: Mapping[str, Mapping[str, Any] | None] | None,
        main_task: str,
        num_bins: int,
        split_seed: int,
        level_encoding: str = "auto",
        schema: Schema | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        resident: bool = True,
        seed: int = 0,
    ) -> None:
        _check_features(features)
        numeric = ColumnOptions("numeric")
        try:
            categorical = ColumnOptions("categorical", level_encoding)
        except ArgumentError as error:
            raise ArgumentError(f"level_{error}") from None
        super().__init__(
            train=FILE_NAMES["train"],  # names alone; `_sources` has the paths
            validation={"fraction": 0.5, "of": "test"},
            test=FILE_NAMES["test"],
            columns={name: numeric if name in NUMERIC else categorical for name in features},
            tasks=tasks,
            main_task=main_task,
            num_bins=num_bins,
            split_seed=split_seed,
            cache_dir=cache_dir,
            schema=schema,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            resident=resident,
            seed=seed,
        )
        if source not in ("auto", "official", "sample"):
            raise ArgumentError(f"source={source}: must be auto, official or sample")
        self.dir, self.source, self.url = dir, source, url

    @cached_property
    def files(self) -> Files:
        """The two files. They are downloaded if necessary."""
        return find_census_files(self.dir, self.source, self.url, self.cache_dir)

    @property
    def cache_name(self) -> str:
        return "census-sample" if self.files.is_sample else "census"

    @classmethod
    def row_format(cls, config: Mapping[str, Any], schema: Schema) -> RowFormat:
        return RowFormat(partial(census_layout.find_options, schema.input_columns), may_be_missing=False)

    @classmethod
    def implied_changes(cls, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {"source": "official"} if "dir" in changes else {}  # never the bundled sample

    def _sources(self) -> dict[str, Source]:
        paths = {"train": self.files.train, "test": self.files.test}
        sources = {}
        for name, path in paths.items():
            read, place = partial(_read, path), partial(_locate, path)
            sources[name] = Source(str(path), {path.name: str(path)}, lambda: COLUMNS, read, place)
        return sources

    def _is_streamed(self, sources: Mapping[str, Source]) -> bool:
        return False  # the rows fit into any memory, and `headerless_csv` only reads whole files

    def _row_origin(self, num_rows: Mapping[str, int]) -> str:
        if self.files.is_sample:
            return "sample"
        by_file = {"train": num_rows["train"], "test": num_rows["val"] + num_rows["test"]}
        return "official" if by_file == OFFICIAL_ROWS else "custom"

    def _check_inputs(self, columns: Iterable[str]) -> None:
        for task in self.tasks:
            allowed = [column for column in COLUMNS if (column in NUMERIC) == task.holds_numbers]
            if task.column not in allowed:
                kind = "numeric" if task.holds_numbers else "categorical"
                rule = f"must be a {kind} column: {', '.join(allowed)}"
                raise ArgumentError(f"tasks.{task.name}.column={task.column}: {rule}")
            for column in (task.where, task.weight):
                if column and column not in COLUMNS:
                    raise ArgumentError(f"tasks.{task.name}: {column!r} is not a column")
            if task.column in columns:
                what = f"the column that the label of task {task.name} is made from"
                raise ArgumentError(f"features: {task.column!r} is {what}, so it must not be an input")


def read(path: Path) -> pd.DataFrame:
    """Read one of the two files; see `headerless_csv.read_rows` for the errors."""
    return headerless_csv.read_rows(path, headerless_csv.Format(COLUMNS, NUMERIC, {"income": INCOME}))


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    return read(path)[list(columns)]


def _locate(path: Path, error: RowError) -> UserError:
    return UserError(f"{path}: {error}")


def _check_features(features: Sequence[str]) -> None:
    if isinstance(features, str):
        raise ArgumentError(f"features={features}: must be a list of columns")
    if not features:
        raise ArgumentError("features=[]: must name at least one column")
    for name in features:
        if name not in COLUMNS:
            raise ArgumentError(f"features: {name!r} is not a column; the columns are {', '.join(COLUMNS)}")
        if features.count(name) > 1:
            raise ArgumentError(f"features: {name!r} must be named once")
