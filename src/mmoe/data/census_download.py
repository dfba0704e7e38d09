"""Download UCI's archive of the data set once, and keep its two files if they are valid.

The server is not trusted: the size and the duration of the download are limited.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from mmoe.atomic import sync
from mmoe.data.cache import lock
from mmoe.data.census_archive import BLOCK_BYTES, MAX_ARCHIVE_BYTES, DownloadError, unpack

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60
MIN_BYTES_PER_S = 10_000  # the average speed must not be lower, after READ_TIMEOUT_S of grace


def fetch(url: str, target: Path, num_rows: Mapping[str, int], num_fields: int) -> None:
    """Download `url` and keep its files in `target` as `NAME.gz`, unless they are there already.

    Args:
        url: address of the zip.
        target: the destination folder. It appears whole or not at all.
        num_rows: the number of rows that each file must have, by name.
        num_fields: the number of comma-separated fields that each row must have.

    Raises:
        DownloadError: the download failed or is invalid; nothing is kept.
        UserError: the folder of `target` cannot be a directory.
        OSError: the folder cannot be written.
    """
    if _is_complete(target, num_rows):  # this needs no lock, so the cache may be read-only
        return
    with lock(target):
        if _is_complete(target, num_rows):
            return
        scratch = target.with_name(f".{target.name}.scratch")
        try:
            if scratch.exists():  # a killed process left it
                shutil.rmtree(scratch)
            (scratch / "kept").mkdir(parents=True)
            archive = scratch / "archive.zip"
            with archive.open("wb") as file:
                for block in _response(url):
                    file.write(block)
            unpack(url, archive, scratch / "kept", num_rows, num_fields)
            with suppress(OSError):  # some file systems cannot sync a folder
                sync(scratch / "kept")
            if target.exists():
                shutil.rmtree(target)
            (scratch / "kept").replace(target)
        except OSError as error:
            error.filename, error.filename2 = str(target), None  # name the target instead of a scratch file
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_complete(target: Path, names: Mapping[str, int]) -> bool:
    # Unlike Path.is_file, os.path.isfile does not raise if the path is too long or its folder is unreadable.
    return all(os.path.isfile(target / f"{name}.gz") for name in names)  # noqa: PTH113


def _response(url: str) -> Iterator[bytes]:
    """The content at `url` in blocks, with a progress bar.

    Raises:
        DownloadError: the content cannot be downloaded, is too large or arrives too slowly.
    """
    import requests  # imported here, because it is slow and rarely needed
    import urllib3

    try:
        # A compressed response could unpack to any size.
        headers = {"Accept-Encoding": "identity"}
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        started = time.monotonic()
        received = 0
        with requests.get(url, headers=headers, timeout=timeout, stream=True) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            if total and total > MAX_ARCHIVE_BYTES:
                raise DownloadError(f"{url}: must have at most {MAX_ARCHIVE_BYTES:,} bytes, has {total:,}")
            with tqdm(total=total, unit="B", unit_scale=True, desc="census") as bar:
                # `read1` returns the bytes that have arrived; `iter_content` would wait for a whole block.
                while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
                    received += len(block)
                    if received > MAX_ARCHIVE_BYTES:
                        raise DownloadError(f"{url}: must have at most {MAX_ARCHIVE_BYTES:,} bytes")
                    if time.monotonic() - started > READ_TIMEOUT_S + received / MIN_BYTES_PER_S:
                        rule = f"must arrive at {MIN_BYTES_PER_S:,} bytes per second or faster"
                        raise DownloadError(f"{url}: {rule}")
                    bar.update(len(block))
                    yield block
    # Errors of the disk do not occur here, because the caller writes the blocks.
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise DownloadError(f"{url}: cannot be downloaded ({type(error).__name__})") from None
