"""Unpack UCI's archive: a zip that holds census.tar.gz, which holds the files.

The archive is not trusted. The unpacked size, the number of files and the length of a line are limited, and
the content is streamed, so that a hostile archive fills neither the memory nor the disk.
"""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from mmoe.atomic import sync
from mmoe.errors import is_disk_error

MAX_ARCHIVE_BYTES = 2**25  # three times the size of UCI's archive
MAX_UNPACKED_BYTES = 2**28  # UCI's files are 156 MB in total
MAX_FILES = 100  # members of census.tar.gz; UCI's has three
MAX_LINE_BYTES = 10_000  # the longest row has 634
MAX_BLANK_LINES = 1_000
BLOCK_BYTES = 2**16
TAR_NAME = "census.tar.gz"


class DownloadError(Exception):
    """The files cannot be downloaded or are invalid. The message is one line."""


def unpack(url: str, archive: Path, folder: Path, num_rows: Mapping[str, int], num_fields: int) -> None:
    """Check the files in the archive line by line, and compress each as `NAME.gz` in `folder`.

    Args:
        url: origin of the archive, for errors.
        archive: the zip.
        folder: the destination.
        num_rows: the number of rows that each file must have, by name.
        num_fields: the number of comma-separated fields that each row must have.

    Raises:
        DownloadError: the archive or a file is invalid.
        OSError: the disk cannot be read or written.
    """
    for name, lines in _files(url, archive, num_rows):
        rows = 0
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=6) as file:
            for number, line in enumerate(lines, 1):
                where, fields = f"{name}, line {number}", line.count(b",") + 1
                if line.strip():
                    rows += 1
                    if fields != num_fields:
                        raise DownloadError(f"{where}: must have {num_fields} fields, has {fields}")
                elif number - rows > MAX_BLANK_LINES:
                    raise DownloadError(f"{where}: must have at most {MAX_BLANK_LINES:,} blank lines")
                file.write(line)
        sync(folder / f"{name}.gz")
        if rows != num_rows[name]:
            raise DownloadError(f"{name}: must have {num_rows[name]:,} rows, has {rows:,}")
    for name in num_rows:
        if not (folder / f"{name}.gz").is_file():
            raise DownloadError(f"{name}: not in the archive")


def _files(url: str, archive: Path, names: Container[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The name and the lines of each file in `names`. The archive is read to its end to verify checksums."""
    with _archive_errors(url), zipfile.ZipFile(archive) as outer:
        found = [member for member in outer.infolist() if member.filename == TAR_NAME]
        if len(found) != 1:
            raise ValueError(f"must hold one {TAR_NAME}, holds {len(found)}")
        # Other compression methods can use unbounded memory.
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{TAR_NAME} must be stored or deflated")
        with outer.open(found[0]) as inner:
            unzipped = gzip.GzipFile(fileobj=_LimitedReader(inner, MAX_ARCHIVE_BYTES))
            content = _LimitedReader(unzipped, MAX_UNPACKED_BYTES)
            seen = set()
            for member in _tar_headers(content):
                name = Path(member.name).name
                if name not in names:
                    _skip(content, member.size)
                elif name in seen:
                    raise ValueError(f"{name} must occur only once")
                elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise ValueError(f"{name} must be a regular file")
                else:
                    seen.add(name)
                    yield name, _lines(url, name, io.BufferedReader(_MemberReader(content, member.size)))
                _skip(content, -member.size % tarfile.BLOCKSIZE)
            while content.read(BLOCK_BYTES):
                pass


def _tar_headers(content: "_LimitedReader") -> Iterator[tarfile.TarInfo]:
    """The headers of a tar archive. The caller reads the content that follows each of them.

    `tarfile.open` is not safe here: a long extended header keeps it busy for hours, and it expands sparse
    files. This function treats both as ordinary members. The caller skips them, or rejects them by type.
    """
    for _ in range(MAX_FILES):
        header = content.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if member.size < 0:
            raise ValueError(f"the size of {member.name} must not be negative")
        yield member
    raise ValueError(f"{TAR_NAME} must have fewer than {MAX_FILES} files")


def _skip(content: "_LimitedReader", size: int) -> None:
    while size:
        size -= len(content.read_at_least_one(min(size, BLOCK_BYTES)))


def _lines(url: str, name: str, file: io.BufferedReader) -> Iterator[bytes]:
    with _archive_errors(url):
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise DownloadError(f"{name}, line {number}: must have at most {MAX_LINE_BYTES:,} bytes")
            yield line


@contextmanager
def _archive_errors(url: str) -> Iterator[None]:
    """Turn the errors of a corrupt archive, which may be of any type, into DownloadError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DownloadError) or is_disk_error(error):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"{url}: not the expected archive ({why})") from None


class _LimitedReader(io.BufferedIOBase):
    """Read a file sequentially. Raise ValueError after `limit` bytes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit: int) -> None:
        self.file, self.limit, self.left = file, limit, limit

    def read(self, size: int | None = -1, /) -> bytes:
        block = self.file.read(-1 if size is None else size)
        self.left -= len(block)
        if self.left < 0:
            raise ValueError(f"{TAR_NAME} must have at most {self.limit:,} bytes")
        return block

    def read_at_least_one(self, size: int) -> bytes:
        """Read at least 1 and at most `size` bytes. Raise EOFError at the end."""
        block = self.read(size)
        if not block:
            raise EOFError(f"{TAR_NAME} is cut off")
        return block


class _MemberReader(io.RawIOBase):
    """Read the next `size` bytes of a file."""

    def __init__(self, file: _LimitedReader, size: int) -> None:
        self.file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = min(len(buffer), self.left)
        block = self.file.read_at_least_one(size) if size else b""
        buffer[: len(block)] = block
        self.left -= len(block)
        return len(block)
