"""Read a text file, plain or gzip, in blocks of whole lines.

A byte order mark declares the file's encoding. Reading uses no background threads.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple, cast

from mmoe.errors import UserError

BLOCK_BYTES = 1 << 22  # bytes that are read at once
MAX_LINE_BYTES = 1 << 24  # longer lines are rejected
GZIP = b"\x1f\x8b"
# UTF-32-LE stands before UTF-16-LE, because its byte order mark begins with that of UTF-16-LE.
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Block(NamedTuple):
    """Whole lines of a file.

    `number` is the number of the first line, from 1. `encoding` is the encoding of `content`: UTF-8 if the
    file begins with a byte order mark, else None.
    """

    number: int
    content: bytes
    encoding: str | None


def blocks(path: Path) -> Generator[Block]:
    """Blocks of about 4 MiB, without the byte order mark. Blocks of empty lines are left out.

    Raises:
        UserError: the file cannot be read, is not in its declared encoding, or has a line that is too long.
    """
    with file_errors(path), path.open("rb") as raw:
        is_gzip = path.suffix.lower() == ".gz" or raw.peek(2).startswith(GZIP)
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if is_gzip else raw)
        first = file.read(BLOCK_BYTES)
        mark = next((mark for mark in ENCODINGS if first.startswith(mark)), b"")
        encoding = "utf-8" if mark else None
        number, rest = 1, b""
        try:
            others = iter(partial(file.read, BLOCK_BYTES), b"")
            pieces: Iterator[bytes] = chain([first.removeprefix(mark)], others)
            if mark:
                pieces = (text.encode() for text in codecs.iterdecode(pieces, ENCODINGS[mark]))
            for piece in pieces:
                rest += piece
                # A carriage return at the very end may be the first half of a line end.
                end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
                block, rest = rest[:end], rest[end:]
                if block.strip(b"\r\n"):
                    yield Block(number, block, encoding)
                number += count_line_ends(block)
                if len(rest) > MAX_LINE_BYTES:
                    raise UserError(f"{path}, line {number}: must be shorter than {MAX_LINE_BYTES >> 20} MiB")
        except UnicodeDecodeError as error:
            number += count_line_ends(rest + error.object[: error.start].decode(error.encoding).encode())
            what = f"must be {error.encoding.upper()}, as the byte order mark of the file says"
            raise UserError(f"{path}, line {number}: {what}") from None
        if rest.strip(b"\r\n"):
            yield Block(number, rest, encoding)


def split_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers. They are decoded as latin-1, which keeps every byte.

    A lone carriage return ends a line too, as in Arrow.
    """
    text = io.StringIO(block.content.decode("latin-1"), newline=None)
    for number, line in enumerate(text, block.number):
        if line != "\n":
            yield number, line.rstrip("\n")


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk and of gzip into UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; name a file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"damaged or incomplete gzip file ({error})"
        raise UserError(f"{path}: {what}; fetch or copy it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def count_line_ends(content: bytes) -> int:
    r"""The number of line ends: \n, \r or \r\n."""
    return content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n")
