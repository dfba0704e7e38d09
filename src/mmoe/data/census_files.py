"""The two census files and their columns; find them in a directory, at UCI, or in the bundled sample."""

import logging
from pathlib import Path
from typing import NamedTuple

from mmoe.data import cache, census_download
from mmoe.data.census_archive import DownloadError
from mmoe.errors import UserError

log = logging.getLogger(__name__)

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
FILE_NAMES = {"train": "census-income.data", "test": "census-income.test"}
OFFICIAL_ROWS = {"train": 199_523, "test": 99_762}
SAMPLE_DIR = Path(__file__).parent / "sample"


class Files(NamedTuple):
    """The two files, and whether they are the bundled sample."""

    train: Path
    test: Path
    is_sample: bool = False


def find_census_files(dir: str | None, source: str, url: str, cache_dir: Path) -> Files:
    """Find the two files in `dir`. Without `dir`, download them from `url`.

    If the download fails, take the bundled sample and log a warning, unless `source` is `official`. If
    `source` is `sample`, always take the bundled sample.

    Raises:
        UserError: `dir` lacks a file, or the download failed and `source` is `official`.
    """
    if source == "sample":
        return Files(*_paths(SAMPLE_DIR), is_sample=True)
    if dir:
        return Files(*_paths(cache.expand_folder("data.dir", dir)))
    target = cache_dir / "census-income"
    try:
        census_download.fetch(
            url, target, {FILE_NAMES[k]: OFFICIAL_ROWS[k] for k in FILE_NAMES}, len(COLUMNS)
        )
        return Files(*_paths(target))
    except DownloadError as error:
        if source == "official":
            raise UserError(f"data.source=official: {error}; give data.dir or set MMOE_CENSUS_DIR") from None
        log.warning(
            "%s. FALLING BACK TO THE BUNDLED SAMPLE: its rows are synthetic, so results only resemble those"
            " of the real data set. Give data.dir=... or set MMOE_CENSUS_DIR to use the real files.",
            error,
        )
        return Files(*_paths(SAMPLE_DIR), is_sample=True)


def _paths(folder: Path) -> tuple[Path, Path]:
    """The two files in a folder, compressed or not."""
    if not folder.is_dir():
        rule = f"must be a directory with {' and '.join(FILE_NAMES.values())} (or .gz)"
        raise UserError(f"data.dir={folder}: {rule}")
    found = []
    for name in FILE_NAMES.values():
        path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
        if path is None:
            raise UserError(f"{folder / name}: missing (with or without .gz)")
        found.append(path)
    return found[0], found[1]
