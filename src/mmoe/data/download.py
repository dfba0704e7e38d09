"""Fetch UCI's archive of the data set once, and keep its two files only if they are what they must be."""

import gzip
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from mmoe.data.cache import lock

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60


class DownloadError(Exception):
    """The files could not be fetched, or are not what they must be; says which, on one line."""


def fetch(url: str, target: Path, num_rows: Mapping[str, int], num_fields: int) -> None:
    """Download `url` and keep its files in `target` as `NAME.gz`; nothing to do where they are there.

    The archive is a zip that holds census.tar.gz, which holds the files.

    Args:
        url: address of the zip.
        target: directory, made whole in one rename.
        num_rows: by file name, the rows that it must have.
        num_fields: comma-separated fields that each row must have.

    Raises:
        DownloadError: nothing was kept.
    """
    with lock(target):
        if target.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            archive = _download(url, Path(scratch))
            kept = Path(scratch) / "kept"
            kept.mkdir()
            try:
                with zipfile.ZipFile(archive) as outer, outer.open("census.tar.gz") as inner:
                    _keep(inner, kept, num_rows, num_fields)
            except (zipfile.BadZipFile, tarfile.TarError, KeyError, EOFError, OSError) as error:
                raise DownloadError(f"{url}: not the archive that it should be ({error})") from None
            kept.replace(target)


def _download(url: str, folder: Path) -> str:
    import pooch  # here, for it takes a while and is needed once
    import requests

    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
    pooch.get_logger().setLevel("ERROR")
    try:
        return str(
            pooch.retrieve(url, known_hash=None, fname="census.zip", path=folder, downloader=downloader)
        )
    except (requests.RequestException, OSError, ValueError) as error:
        raise DownloadError(f"{url}: cannot be downloaded ({type(error).__name__})") from None


def _keep(archive: IO[bytes], folder: Path, num_rows: Mapping[str, int], num_fields: int) -> None:
    """Check and recompress the files of the tar archive, line by line."""
    with tarfile.open(fileobj=archive, mode="r|gz") as tar:
        for member in tar:
            name = Path(member.name).name
            content = tar.extractfile(member) if name in num_rows else None
            if content is None:
                continue
            rows = 0
            with gzip.open(folder / f"{name}.gz", "wb", compresslevel=6) as file:
                for number, line in enumerate(content, 1):
                    fields = line.count(b",") + 1
                    if line.strip() and fields != num_fields:
                        raise DownloadError(
                            f"{name}, line {number}: must have {num_fields} fields, has {fields}"
                        )
                    rows += bool(line.strip())
                    file.write(line)
            if rows != num_rows[name]:
                raise DownloadError(f"{name}: must have {num_rows[name]:,} rows, has {rows:,}")
    for name in num_rows:
        if not (folder / f"{name}.gz").is_file():
            raise DownloadError(f"{name}: not in the archive")
