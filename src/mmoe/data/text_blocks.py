"""Read a text file as blocks of whole lines, plain or gzip, in the encoding that its first bytes declare.

Everything is read in the calling thread: nothing goes on in the background after an error.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from mmoe.errors import UserError

SIZE = 1 << 22  # bytes that are read at once
LONGEST = 1 << 24  # bytes of a line: a longer one is no row of a table
GZIP = b"\x1f\x8b"
# The marks of UTF-32 come first, because that of its little-endian form begins as UTF-16's does.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Block(NamedTuple):
    """Whole lines of a file.

    `number` is the number of the first line, from 1. `encoding` is that of `content`: UTF-8 where the file
    begins with a byte order mark, None where it does not declare one.
    """

    number: int
    content: bytes
    encoding: str | None


def blocks(path: Path) -> Generator[Block]:
    """The file's blocks of about 4 MiB, without the byte order mark and without blocks of empty lines.

    Raises:
        UserError: the file cannot be read, breaks its declared encoding, or has a line beyond `LONGEST`.
    """
    with _mistakes(path), _open(path) as file:
        first = file.read(SIZE)
        mark = next((mark for mark in MARKS if first.startswith(mark)), b"")
        encoding = "utf-8" if mark else None
        number, rest = 1, b""
        try:
            for part in _in_utf8(_pieces(file, first.removeprefix(mark)), MARKS.get(mark)):
                rest += part
                # A carriage return at the very end may be half of a line end.
                end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
                block, rest = rest[:end], rest[end:]
                if block.strip(b"\r\n"):
                    yield Block(number, block, encoding)
                number += _line_ends(block)
                if len(rest) > LONGEST:
                    raise UserError(f"{path}, line {number}: must be shorter than {LONGEST >> 20} MiB")
        except UnicodeDecodeError as error:
            number += _line_ends(rest + error.object[: error.start].decode(error.encoding).encode())
            what = f"must be {error.encoding.upper()}, as the byte order mark of the file says"
            raise UserError(f"{path}, line {number}: {what}") from None
        if rest.strip(b"\r\n"):
            yield Block(number, rest, encoding)


def split(block: Block) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers; every byte becomes the latin-1 character of its number.

    A lone carriage return ends a line too, as it does for Arrow.
    """
    text = io.StringIO(block.content.decode("latin-1"), newline=None)
    for number, line in enumerate(text, block.number):
        if line != "\n":
            yield number, line.rstrip("\n")


@contextmanager
def _mistakes(path: Path) -> Iterator[None]:
    """Turn what a disk or gzip says about a file into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; name a file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); fetch or copy it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed if it is named .gz or begins as gzip does."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".gz" or file.peek(2).startswith(GZIP):
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def _pieces(file: IO[bytes], first: bytes) -> Iterator[bytes]:
    yield first
    while piece := file.read(SIZE):
        yield piece


def _in_utf8(pieces: Iterator[bytes], encoding: str | None) -> Iterator[bytes]:
    """The pieces as UTF-8 where the file declares an encoding, else as they are."""
    if encoding is None:
        yield from pieces
    else:
        for text in codecs.iterdecode(pieces, encoding):
            yield text.encode()


def _line_ends(content: bytes) -> int:
    return content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n")
