"""The Census-Income (KDD) data set: population surveys of 1994 and 1995.

UCI data set 117. Its census-income.names describes 41 columns and the label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mmoe.data import cache, headerless_csv
from mmoe.data.census_files import OFFICIAL_ROWS, find_files
from mmoe.data.datamodule import DataModule
from mmoe.data.encode import encode
from mmoe.data.fit_schema import fit_schema
from mmoe.data.schema import Schema, Task
from mmoe.data.splits import Dataset, assemble
from mmoe.errors import ArgumentError, check_integers, check_seeds

# In file order. The names are from census-income.names, shortened if they are phrases.
COLUMNS = (
    "age", "class_of_worker", "industry_code", "occupation_code", "education", "wage_per_hour",
    "enrolled_last_week", "marital_status", "major_industry", "major_occupation", "race", "hispanic_origin",
    "sex", "union_member", "unemployment_reason", "full_or_part_time", "capital_gains", "capital_losses",
    "dividends", "tax_filer_status", "previous_region", "previous_state", "household_and_family",
    "household_summary", "instance_weight", "migration_msa", "migration_region", "migration_within_region",
    "same_house", "previous_sunbelt", "number_worked_for", "family_under_18", "country_of_father",
    "country_of_mother", "country_of_self", "citizenship", "own_business", "veterans_questionnaire",
    "veterans_benefits", "weeks_worked", "year", "income",
)  # fmt: skip
NUMERIC = (
    "age", "wage_per_hour", "capital_gains", "capital_losses", "dividends", "instance_weight",
    "number_worked_for", "own_business", "veterans_benefits", "weeks_worked", "year",
)  # fmt: skip
INCOME = ("- 50000.", "50000+.")


class CensusData(DataModule):
    """Data module of the census rows; conf/data/census.yaml gives every argument.

    Args:
        dir: directory of the two files; None downloads them.
        source: `auto`, `official` (never the bundled sample) or `sample`.
        url: UCI's archive of the data set.
        cache_dir: directory for downloads and encoded rows; None is the user's cache directory.
        features: the input columns.
        tasks: for each task name, a mapping with the label's `column` and either its `positive` levels or
            `kind: regression`. A task that is None is left out.
        main_task: the task that the others support; its validation metric chooses the epoch.
        num_bins: upper limit for the quantile bins of a numeric column.
        split_seed: seed of the 1:1 split of the test file into validation and test rows.
        schema: the schema of a run, to encode with; None fits one to the training file.
        batch_size, eval_batch_size, resident, seed: see `DataModule`.

    Raises:
        ArgumentError: an argument breaks a rule.
    """

    takes_schema = True

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
        schema: Schema | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        resident: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(self._load_or_encode, batch_size, eval_batch_size, resident, seed)
        self.tasks = [_task(name, task) for name, task in (tasks or {}).items() if task]
        _check_columns(features, self.tasks)
        names = [task.name for task in self.tasks]
        if main_task not in names:
            raise ArgumentError(f"main_task={main_task}: must be one of {', '.join(names)}")
        self.tasks.sort(key=lambda task: task.name != main_task)  # the main task comes first
        if source not in ("auto", "official", "sample"):
            raise ArgumentError(f"source={source}: must be auto, official or sample")
        check_integers(2, num_bins=num_bins)
        check_seeds(split_seed=split_seed)
        self.features, self.num_bins, self.split_seed = list(features), num_bins, split_seed
        self.cache_dir = cache.directory(cache_dir)
        self.find_files = partial(find_files, dir, source, url, self.cache_dir)
        self.given_schema = schema

    def raw_column(self, name: str, split: str) -> pd.Series | None:
        """A column of the file, for the rows of `train`, `val` or `test`; None if there is no such column."""
        if name not in COLUMNS:
            return None
        files = self.find_files()
        column = read(files.train if split == "train" else files.test)[name]
        return column.iloc[self.dataset.positions[split].numpy()].reset_index(drop=True)

    def _load_or_encode(self) -> Dataset:
        """The encoded rows, from the cache if the same files were encoded before with the same options."""
        files = self.find_files()
        digests = {path.name: cache.sha256(path) for path in (files.train, files.test)}
        key: dict[str, Any] = {
            "files": digests,
            "is_sample": files.is_sample,
            "features": self.features,
            "tasks": [asdict(task) for task in self.tasks],
            "num_bins": self.num_bins,
            "split_seed": self.split_seed,
        }
        # For the run's own files, fitting would give the given schema, so both cases use one cache entry.
        if self.given_schema and self.given_schema.files != digests:
            key["schema"] = self.given_schema.to_json()

        def build() -> Dataset:
            train, held_out = read(files.train), read(files.test)
            counts = {"train": len(train), "test": len(held_out)}
            origin = "sample" if files.is_sample else "official" if counts == OFFICIAL_ROWS else "custom"
            fitted = self.given_schema or fit_schema(train, self.features, self.tasks, self.num_bins)
            schema = replace(fitted, rows=origin, files=digests)
            sources = (str(files.train), str(files.test))
            encoded = encode(train, schema), encode(held_out, schema)
            return assemble(schema, *encoded, self.split_seed, sources)

        return cache.load_or_build(self.cache_dir, "census", key, build)


def read(path: Path) -> pd.DataFrame:
    """Read one of the two files; see `headerless_csv.read_rows` for the errors."""
    return headerless_csv.read_rows(path, headerless_csv.Format(COLUMNS, NUMERIC, {"income": INCOME}))


def _task(name: str, given: Mapping[str, Any]) -> Task:
    """The task that a configuration describes."""
    if not isinstance(given, Mapping):
        raise ArgumentError(f"tasks.{name}={given}: must be a mapping with column, and positive or kind")
    for key in given:
        if key not in ("column", "positive", "kind"):
            raise ArgumentError(f"tasks.{name}.{key}: must be column, positive or kind")
    positive = given.get("positive") or ()
    if isinstance(positive, str) or not all(isinstance(level, str) for level in positive):
        raise ArgumentError(f"tasks.{name}.positive={positive}: must be a list of text levels")
    if "column" not in given:
        raise ArgumentError(f"tasks.{name}.column: must be given")
    return Task(name, **{**given, "positive": tuple(positive)})


def _check_columns(features: Sequence[str], tasks: Sequence[Task]) -> None:
    if isinstance(features, str):
        raise ArgumentError(f"features={features}: must be a list of columns")
    if not features:
        raise ArgumentError("features=[]: must name at least one column")
    if not tasks:
        raise ArgumentError("tasks={}: must name at least one task")
    for name in features:
        if name not in COLUMNS:
            raise ArgumentError(f"features: {name!r} is not a column; the columns are {', '.join(COLUMNS)}")
        if features.count(name) > 1:
            raise ArgumentError(f"features: {name!r} must be named once")
    for task in tasks:
        allowed = [column for column in COLUMNS if (column in NUMERIC) != task.is_binary]
        if task.column not in allowed:
            rule = f"must be a {'categorical' if task.is_binary else 'numeric'} column: {', '.join(allowed)}"
            raise ArgumentError(f"tasks.{task.name}.column={task.column}: {rule}")
        if task.column in features:
            what = f"the column that the label of task {task.name} is made from"
            raise ArgumentError(f"features: {task.column!r} is {what}, so it must not be an input")
