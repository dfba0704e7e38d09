"""The Census-Income (KDD) data set: its columns, and how its rows become a data module.

UCI data set 117, census-income.names: 41 columns and the label, 1994 and 1995 population surveys.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mmoe.arguments import check_integers, check_seeds
from mmoe.data import cache, headerless_csv
from mmoe.data.census_files import OFFICIAL_ROWS, Files, check_source, find_files
from mmoe.data.datamodule import DataModule, check_loading
from mmoe.data.encode import Dataset, assemble, encode, fit_schema
from mmoe.data.schema import Schema, Task
from mmoe.errors import UserError

# In file order, under the names of census-income.names, shortened where they are phrases.
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


def datamodule(
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
    **loading: Any,
) -> DataModule:
    """Serve the census rows; the arguments are those of conf/data/census.yaml.

    Args:
        dir: directory of the two files; None takes the downloaded ones.
        source: `auto`, `official` (never the bundled sample) or `sample`.
        url: UCI's archive of the data set.
        cache_dir: where downloads and encoded rows are kept; None is the user's cache directory.
        features: columns that are inputs.
        tasks: by name, the `column` that a label is made from and its `positive` levels, or
            `kind: regression` for a column of numbers; None leaves the task out.
        main_task: the task that the others serve; its validation AUROC chooses the epoch.
        num_bins: most quantile bins of a numeric column.
        split_seed: seed of the 1:1 split of the test file into validation and test.
        schema: encode by this one, a run's, in place of fitting one to the training file.
        loading: further arguments of `DataModule`.

    Raises:
        UserError: an argument breaks a rule.
    """
    check_loading(loading)
    given = {name: task for name, task in (tasks or {}).items() if task}
    labels = [_task(name, task) for name, task in given.items()]
    _check_columns(features, labels)
    if main_task not in given:
        raise UserError(f"main_task={main_task}: must be one of {', '.join(given)}")
    labels.sort(key=lambda task: task.name != main_task)  # the main task comes first
    check_source(source)
    check_integers(2, num_bins=num_bins)
    check_seeds(split_seed=split_seed)
    find = partial(find_files, dir, source, url, cache.directory(cache_dir))
    options = {
        "features": list(features),
        "tasks": [asdict(task) for task in labels],
        "num_bins": num_bins,
        "split_seed": split_seed,
    }
    return DataModule(partial(_load, find, labels, options, schema, cache.directory(cache_dir)), **loading)


def _task(name: str, given: Mapping[str, Any]) -> Task:
    """The task that a configuration describes.

    Raises:
        UserError: a key is unknown or lacking, or a value is not of its type.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"tasks.{name}={given}: must be a column, and positive levels or a kind")
    for key in given:
        if key not in ("column", "positive", "kind"):
            raise UserError(f"tasks.{name}.{key}: must be column, positive or kind")
    positive = given.get("positive") or ()
    if isinstance(positive, str) or not all(isinstance(level, str) for level in positive):
        raise UserError(f"tasks.{name}.positive={positive}: must be a list of levels, which are text")
    if "column" not in given:
        raise UserError(f"tasks.{name}.column: must be given")
    return Task(name, **{**given, "positive": tuple(positive)})


def _check_columns(features: Sequence[str], tasks: Sequence[Task]) -> None:
    if isinstance(features, str):
        raise UserError(f"features={features}: must be a list of columns")
    if not features:
        raise UserError("features=[]: must name at least one column")
    if not tasks:
        raise UserError("tasks={}: must name at least one task")
    for name in features:
        if name not in COLUMNS:
            raise UserError(f"features: {name!r} is not a column; the columns are {', '.join(COLUMNS)}")
        if features.count(name) > 1:
            raise UserError(f"features: {name!r} must be named once")
    for task in tasks:
        fitting = [c for c in COLUMNS if (c in NUMERIC) != task.is_binary]
        if task.column not in fitting:
            what = "levels" if task.is_binary else "numbers"
            raise UserError(
                f"tasks.{task.name}.column={task.column}: must be a column of {what}: {', '.join(fitting)}"
            )
        if task.column in features:
            raise UserError(
                f"features: {task.column!r} is the column that the label of task {task.name} is made from,"
                " so it must not be an input"
            )


def read(path: Path) -> pd.DataFrame:
    """Read one file of the official format; see `headerless_csv.read_rows` for the errors."""
    return headerless_csv.read_rows(path, COLUMNS, NUMERIC, {"income": INCOME})


def _load(
    find: Callable[[], Files],
    tasks: Sequence[Task],
    options: dict[str, Any],
    schema: Schema | None,
    cache_dir: Path,
) -> Dataset:
    """The encoded data set, from the cache if the same files were encoded before with the same options."""
    files = find()
    digests = {path.name: cache.sha256(path) for path in (files.train, files.test)}
    key = {"files": digests, "is_sample": files.is_sample, **options}
    if schema and schema.files != digests:  # its own files give it again
        key["schema"] = schema.to_json()
    return cache.cached(cache_dir, "census", key, partial(_encode, files, digests, tasks, options, schema))


def _encode(
    files: Files,
    digests: dict[str, str],
    tasks: Sequence[Task],
    options: dict[str, Any],
    schema: Schema | None,
) -> Dataset:
    train, rest = read(files.train), read(files.test)
    counts = {"train": len(train), "test": len(rest)}
    origin = "sample" if files.is_sample else "official" if counts == OFFICIAL_ROWS else "custom"
    schema = schema or fit_schema(train, options["features"], tasks, options["num_bins"])
    return assemble(
        replace(schema, rows=origin, files=digests),
        encode(train, schema),
        encode(rest, schema),
        options["split_seed"],
        (str(files.train), str(files.test)),
    )
