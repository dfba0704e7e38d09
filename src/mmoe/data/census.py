"""The Census-Income (KDD) data set: its columns, where its two files come from, its splits.

UCI data set 117, census-income.names: 41 columns and the label, 1994 and 1995 population surveys.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from mmoe.data import cache, download, parse
from mmoe.data.datamodule import DataModule
from mmoe.data.encode import Dataset, check_labels, encode, fit_schema, take
from mmoe.data.schema import Task

log = logging.getLogger(__name__)

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

NAMES = {"train": "census-income.data", "test": "census-income.test"}
OFFICIAL_ROWS = {"train": 199_523, "test": 99_762}
SAMPLE_DIR = Path(__file__).parent / "sample"


class Files(NamedTuple):
    """The two files, and whether they are the bundled sample."""

    train: Path
    test: Path
    is_sample: bool = False


def datamodule(
    *,
    dir: str | None,
    source: str,
    url: str,
    cache_dir: str | None,
    features: Sequence[str],
    tasks: Mapping[str, Mapping[str, Any] | None],
    main_task: str,
    num_bins: int,
    split_seed: int,
    **loading: Any,
) -> DataModule:
    """Serve the census rows; the arguments are those of conf/data/census.yaml.

    Args:
        dir: directory of the two files; None takes the downloaded ones.
        source: `auto`, `official` (never the bundled sample) or `sample`.
        url: UCI's archive of the data set.
        cache_dir: where downloads and encoded rows are kept; None is the user's cache directory.
        features: columns that are inputs.
        tasks: by name, the column that a label is made from and its positive levels; None leaves
            the task out.
        main_task: the task that the others serve; its validation AUROC chooses the epoch.
        num_bins: most quantile bins of a numeric column.
        split_seed: seed of the 1:1 split of the test file into validation and test.
        loading: further arguments of `DataModule`.

    Raises:
        ValueError: an argument breaks a rule.
    """
    labels = tuple(Task(name, t["column"], tuple(t["positive"])) for name, t in tasks.items() if t)
    _check_columns(features, labels)
    if main_task not in [task.name for task in labels]:
        raise ValueError(f"main_task={main_task}: must be one of {', '.join(t.name for t in labels)}")
    if source not in ("auto", "official", "sample"):
        raise ValueError(f"source={source}: must be auto, official or sample")
    if num_bins < 2:
        raise ValueError(f"num_bins={num_bins}: must be at least 2")
    find = partial(find_files, dir, source, url, cache.directory(cache_dir))
    options = {
        "features": list(features),
        "tasks": [(t.name, t.column, t.positive) for t in labels],
        "num_bins": num_bins,
        "split_seed": split_seed,
    }
    return DataModule(partial(_load, find, labels, options, cache.directory(cache_dir)), **loading)


def _check_columns(features: Sequence[str], tasks: Sequence[Task]) -> None:
    if not features:
        raise ValueError("features=[]: must name at least one column")
    if not tasks:
        raise ValueError("tasks={}: must name at least one task")
    for name in features:
        if name not in COLUMNS:
            raise ValueError(f"features: {name!r} is not a column; the columns are {', '.join(COLUMNS)}")
        if features.count(name) > 1:
            raise ValueError(f"features: {name!r} must be named once")
    for task in tasks:
        if task.column not in COLUMNS or task.column in NUMERIC:
            levels = ", ".join(c for c in COLUMNS if c not in NUMERIC)
            raise ValueError(f"tasks.{task.name}.column={task.column}: must be a column of levels: {levels}")
        if task.column in features:
            raise ValueError(
                f"features: {task.column!r} is the column that the label of task {task.name} is made from,"
                " so it must not be an input"
            )


def find_files(dir: str | None, source: str, url: str, cache_dir: Path) -> Files:
    """Find the two files: in `dir`, else downloaded, else the bundled sample with a warning.

    Raises:
        ValueError: `dir` lacks a file, or nothing was found and `source` forbids the sample.
    """
    if source == "sample":
        return Files(*_both(SAMPLE_DIR), is_sample=True)
    if dir:
        return Files(*_both(Path(dir).expanduser()))
    target = cache_dir / "census-income"
    try:
        download.fetch(url, target, {NAMES[k]: OFFICIAL_ROWS[k] for k in NAMES}, num_fields=len(COLUMNS))
        return Files(*_both(target))
    except download.DownloadError as error:
        if source == "official":
            raise ValueError(f"data.source=official: {error}; give data.dir or set MMOE_CENSUS_DIR") from None
        log.warning(
            "%s. FALLING BACK TO THE BUNDLED SAMPLE of synthetic rows: its numbers mean nothing for the real"
            " data set. Give data.dir=... or set MMOE_CENSUS_DIR to use the real files.",
            error,
        )
        return Files(*_both(SAMPLE_DIR), is_sample=True)


def _both(folder: Path) -> tuple[Path, Path]:
    """Paths of the two files, compressed or not."""
    if not folder.is_dir():
        raise ValueError(
            f"data.dir={folder}: must be a directory with {' and '.join(NAMES.values())} (or .gz)"
        )
    found = []
    for name in NAMES.values():
        path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
        if path is None:
            raise ValueError(f"{folder / name}: missing (with or without .gz)")
        found.append(path)
    return found[0], found[1]


def read(path: Path) -> pd.DataFrame:
    """Read one file of the official format; see `parse.read_rows` for the errors."""
    return parse.read_rows(path, COLUMNS, NUMERIC, {"income": INCOME})


def _load(
    find: Callable[[], Files], tasks: Sequence[Task], options: dict[str, Any], cache_dir: Path
) -> Dataset:
    """The encoded data set, from the cache if the same files were encoded before with the same options."""
    files = find()
    digests = {path.name: sha256(path) for path in (files.train, files.test)}
    key = {"files": digests, "is_sample": files.is_sample, **options}
    return cache.cached(cache_dir, "census", key, partial(_encode, files, digests, tasks, options))


def _encode(files: Files, digests: dict[str, str], tasks: Sequence[Task], options: dict[str, Any]) -> Dataset:
    train, rest = read(files.train), read(files.test)
    schema = fit_schema(train, options["features"], tasks, options["num_bins"])
    train_rows, rest_rows = encode(train, schema), encode(rest, schema)
    val, test = split_in_half(len(rest), options["split_seed"])
    rows = {"train": train_rows, "val": take(rest_rows, val), "test": take(rest_rows, test)}
    for split, path in (("train", files.train), ("val", files.test), ("test", files.test)):
        check_labels(rows[split].labels, tasks, f"{path}, {split} rows")
    counts = {"train": len(train), "test": len(rest)}
    origin = "sample" if files.is_sample else "official" if counts == OFFICIAL_ROWS else "custom"
    positions = {"train": torch.arange(len(train)), "val": val, "test": test}
    num_rows = {split: len(where) for split, where in positions.items()}
    return Dataset(replace(schema, rows=origin, files=digests, num_rows=num_rows), rows, positions)


def split_in_half(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Validation and test positions: a random 1:1 split of the test file (paper, section 6.3), sorted."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[: num_rows // 2].sort().values, order[num_rows // 2 :].sort().values


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
