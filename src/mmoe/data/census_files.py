"""Where the two census files come from: a directory, UCI, or the bundled sample."""

import logging
from pathlib import Path
from typing import NamedTuple

from mmoe.data import download
from mmoe.errors import UserError

log = logging.getLogger(__name__)

NAMES = {"train": "census-income.data", "test": "census-income.test"}
OFFICIAL_ROWS = {"train": 199_523, "test": 99_762}
NUM_FIELDS = 42
SAMPLE_DIR = Path(__file__).parent / "sample"


class Files(NamedTuple):
    """The two files, and whether they are the bundled sample."""

    train: Path
    test: Path
    is_sample: bool = False


def check_source(source: str) -> None:
    """Raise UserError unless `source` is one of those that `find_files` knows."""
    if source not in ("auto", "official", "sample"):
        raise UserError(f"source={source}: must be auto, official or sample")


def find_files(dir: str | None, source: str, url: str, cache_dir: Path) -> Files:
    """Find the two files: in `dir`, else downloaded, else the bundled sample with a warning.

    Raises:
        UserError: `dir` lacks a file, or nothing was found and `source` forbids the sample.
    """
    if source == "sample":
        return Files(*_both(SAMPLE_DIR), is_sample=True)
    if dir:
        try:
            return Files(*_both(Path(dir).expanduser()))
        except RuntimeError:
            raise UserError(f"data.dir={dir}: must start with the name of a user after ~") from None
    target = cache_dir / "census-income"
    try:
        download.fetch(url, target, {NAMES[k]: OFFICIAL_ROWS[k] for k in NAMES}, NUM_FIELDS)
        return Files(*_both(target))
    except download.DownloadError as error:
        if source == "official":
            raise UserError(f"data.source=official: {error}; give data.dir or set MMOE_CENSUS_DIR") from None
        log.warning(
            "%s. FALLING BACK TO THE BUNDLED SAMPLE of synthetic rows: its numbers mean nothing for the real"
            " data set. Give data.dir=... or set MMOE_CENSUS_DIR to use the real files.",
            error,
        )
        return Files(*_both(SAMPLE_DIR), is_sample=True)


def _both(folder: Path) -> tuple[Path, Path]:
    """Paths of the two files, compressed or not."""
    if not folder.is_dir():
        raise UserError(
            f"data.dir={folder}: must be a directory with {' and '.join(NAMES.values())} (or .gz)"
        )
    found = []
    for name in NAMES.values():
        path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
        if path is None:
            raise UserError(f"{folder / name}: missing (with or without .gz)")
        found.append(path)
    return found[0], found[1]
