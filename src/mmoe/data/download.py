"""Fetch UCI's archive of the data set once, and keep its two files only if they are what they must be.

What a server sends is not trusted: the size and the time of the download, the unpacked size, the number of
files and the length of a line are bounded.
"""

import gzip
import io
import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from mmoe.atomic import sync
from mmoe.data.cache import is_of_the_disk, lock

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60
MIN_BYTES_PER_S = 10_000  # after the first READ_TIMEOUT_S
MAX_DOWNLOAD_BYTES = 2**25  # three times UCI's archive
MAX_UNPACKED_BYTES = 2**28  # UCI's files have 156 MB
MAX_FILES = 100  # headers of the inner archive; UCI's has three files
MAX_LINE_BYTES = 10_000  # the longest row has 634
MAX_BLANK_LINES = 1_000
BLOCK_BYTES = 2**16
INNER = "census.tar.gz"


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
        UserError: the folder of `target` cannot be a directory.
        OSError: it cannot be written.
    """
    if _is_whole(target, num_rows):  # without the lock, for the cache may be read-only
        return
    with lock(target):
        if _is_whole(target, num_rows):
            return
        scratch = target.with_name(f".{target.name}.scratch")
        try:
            _remove(scratch)  # a process that was killed left it
            (scratch / "kept").mkdir(parents=True)
            archive = scratch / "archive.zip"
            _download(url, archive)
            _keep(url, archive, scratch / "kept", num_rows, num_fields)
            with suppress(OSError):  # some file systems cannot sync a folder
                sync(scratch / "kept")
            _remove(target)
            (scratch / "kept").replace(target)
        except OSError as error:
            error.filename, error.filename2 = str(target), None  # rather than the scratch file's, or none
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(target: Path, names: Mapping[str, int]) -> bool:
    # os.path answers where Path.is_file raises: the name is too long, or its folder must not be read.
    return all(os.path.isfile(target / f"{name}.gz") for name in names)  # noqa: PTH113


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _download(url: str, path: Path) -> None:
    with path.open("wb") as file:
        for block in _blocks(url):
            file.write(block)


def _blocks(url: str) -> Iterator[bytes]:
    """The content at `url`, as it comes, with a progress bar.

    Raises:
        DownloadError: it cannot be fetched, is too large or comes too slowly.
    """
    import requests  # here, for it takes a while and is needed once
    import urllib3

    try:
        # A compressed answer could unpack to any size.
        headers = {"Accept-Encoding": "identity"}
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        started = time.monotonic()
        received = 0
        with requests.get(url, headers=headers, timeout=timeout, stream=True) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            if total and total > MAX_DOWNLOAD_BYTES:
                raise DownloadError(f"{url}: must have at most {MAX_DOWNLOAD_BYTES:,} bytes, has {total:,}")
            with tqdm(total=total, unit="B", unit_scale=True, desc="census") as bar:
                # `read1` returns what has come; `iter_content` would wait for a whole block.
                while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
                    received += len(block)
                    if received > MAX_DOWNLOAD_BYTES:
                        raise DownloadError(f"{url}: must have at most {MAX_DOWNLOAD_BYTES:,} bytes")
                    if time.monotonic() - started > READ_TIMEOUT_S + received / MIN_BYTES_PER_S:
                        raise DownloadError(f"{url}: must come at {MIN_BYTES_PER_S:,} bytes per second")
                    bar.update(len(block))
                    yield block
    # The disk's errors do not come here: the caller writes the blocks.
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise DownloadError(f"{url}: cannot be downloaded ({type(error).__name__})") from None


def _keep(url: str, archive: Path, folder: Path, num_rows: Mapping[str, int], num_fields: int) -> None:
    """Check and recompress the files of the archive, line by line."""
    for name, lines in _files(url, archive, num_rows):
        rows = 0
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=6) as file:
            for number, line in enumerate(lines, 1):
                fields = line.count(b",") + 1
                if not line.strip():
                    if number - rows > MAX_BLANK_LINES:
                        raise DownloadError(
                            f"{name}, line {number}: must have at most {MAX_BLANK_LINES:,} blank lines"
                        )
                elif fields != num_fields:
                    raise DownloadError(f"{name}, line {number}: must have {num_fields} fields, has {fields}")
                else:
                    rows += 1
                file.write(line)
        sync(folder / f"{name}.gz")
        if rows != num_rows[name]:
            raise DownloadError(f"{name}: must have {num_rows[name]:,} rows, has {rows:,}")
    for name in num_rows:
        if not (folder / f"{name}.gz").is_file():
            raise DownloadError(f"{name}: not in the archive")


def _files(url: str, archive: Path, names: Container[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and lines of each file of `names` in the archive, which is read to its end for its checksums."""
    with _reading(url), zipfile.ZipFile(archive) as outer:
        found = [member for member in outer.infolist() if member.filename == INNER]
        if len(found) != 1:
            raise ValueError(f"must hold one {INNER}, holds {len(found)}")
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{INNER} must be stored or deflated")  # others may ask for any memory
        with outer.open(found[0]) as inner:
            unpacked = gzip.GzipFile(fileobj=_Bounded(inner, MAX_DOWNLOAD_BYTES))
            content = _Bounded(unpacked, MAX_UNPACKED_BYTES)
            seen = set()
            for member in _members(content):
                name = Path(member.name).name
                if name not in names:
                    _skip(content, member.size)
                elif name in seen:
                    raise ValueError(f"{name} must be there once")
                elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise ValueError(f"{name} must be an ordinary file")
                else:
                    seen.add(name)
                    yield name, _lines(url, name, io.BufferedReader(_Part(content, member.size)))
                _skip(content, -member.size % tarfile.BLOCKSIZE)
            while content.read(BLOCK_BYTES):
                pass


def _members(content: "_Bounded") -> Iterator[tarfile.TarInfo]:
    """The headers of a tar archive; whoever takes one reads the content that follows it.

    `tarfile.open` would hold extended headers of any size in memory, and fill the holes of sparse files. Here
    they are members of other types, which are skipped.
    """
    for _ in range(MAX_FILES):
        header = content.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if member.size < 0:
            raise ValueError(f"the size of {member.name} must not be negative")
        yield member
    raise ValueError(f"{INNER} must have less than {MAX_FILES} files")


def _skip(content: "_Bounded", size: int) -> None:
    while size:
        size -= len(content.read_some(min(size, BLOCK_BYTES)))


def _lines(url: str, name: str, file: io.BufferedReader) -> Iterator[bytes]:
    number = 0
    with _reading(url):
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DownloadError(f"{name}, line {number}: must have at most {MAX_LINE_BYTES:,} bytes")
            yield line


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn whatever a broken archive raises into DownloadError; the disk's errors stay."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DownloadError) or is_of_the_disk(error):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"{url}: not the archive that it should be ({why})") from None


class _Bounded(io.BufferedIOBase):
    """A file that must have at most `limit` bytes, read in order."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit: int) -> None:
        self.file, self.limit, self.left = file, limit, limit

    def read(self, size: int | None = -1, /) -> bytes:
        block = self.file.read(-1 if size is None else size)
        self.left -= len(block)
        if self.left < 0:
            raise ValueError(f"{INNER} must have at most {self.limit:,} bytes")
        return block

    def read_some(self, size: int) -> bytes:
        """At least one byte.

        Raises:
            EOFError: there is none.
        """
        block = self.read(size)
        if not block:
            raise EOFError(f"{INNER} is cut off")
        return block


class _Part(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: _Bounded, size: int) -> None:
        self.file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = min(len(buffer), self.left)
        block = self.file.read_some(size) if size else b""
        buffer[: len(block)] = block
        self.left -= len(block)
        return len(block)
