"""The start of a file of delimited text: its encoding, its delimiter and its first rows."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import pyarrow as pa

from mmoe.data.data_files import file_errors, is_tsv, open_stream
from mmoe.data.text_blocks import ENCODINGS
from mmoe.errors import UserError

START_BYTES = 1 << 20
WHOLE_CHARACTERS = START_BYTES // 4  # a shorter start is the whole file: a character has at most 4 bytes
SAMPLE_ROWS = 200
MEMORY_BYTES = 1 << 26  # longer text is converted to UTF-8 in a temporary file, not in memory
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
MARK = "\N{BYTE ORDER MARK}"
FALLBACKS = ("utf-8", "cp1252", "latin-1")  # the first one that can decode the start of a file


class Start(NamedTuple):
    """The first bytes of a file as text without the byte order mark, and the encoding of the file."""

    text: str
    encoding: str
    has_mark: bool


def read_start(path: str, encoding: str | None) -> Start:
    """Read the start of a file.

    A byte order mark overrides `encoding`. If there is neither, the encoding is UTF-8. If the start of the
    file is not valid UTF-8, it is Windows-1252, or latin-1 for bytes that Windows-1252 does not have. A byte
    that is not valid UTF-8 becomes a surrogate. In other encodings, an invalid byte is left out.

    Raises:
        UserError: the file cannot be read, is empty, or has NUL bytes.
    """
    with file_errors(path), open_stream(path) as stream:
        raw = stream.read(START_BYTES)
    marked = next((name for mark, name in ENCODINGS.items() if raw.startswith(mark)), None)
    encoding = marked or encoding or next(name for name in FALLBACKS if _is_valid(raw, name))
    errors = "surrogateescape" if is_utf8(encoding) else "ignore"
    text = codecs.getincrementaldecoder(encoding)(errors).decode(raw)
    start = Start(text.removeprefix(MARK), encoding, text.startswith(MARK))
    if not start.text.strip("\r\n"):
        raise UserError(f"{path}: is empty")
    if "\0" in text:
        rule = "must not have NUL bytes; a file in UTF-16 must begin with a byte order mark"
        raise UserError(f"{path}: {rule}")
    return start


def utf8_stream(path: str, encoding: str) -> pa.NativeFile:
    """Open a file of text as UTF-8. Call it within `file_errors`.

    Text in another encoding is converted in memory, or into a temporary file if it is long. Arrow could
    convert it, but its background threads would then call Python. If Python exits while they read, the
    process aborts.
    """
    stream = open_stream(path)
    if is_utf8(encoding):
        return stream
    decoder = codecs.getincrementaldecoder(encoding)()
    memory = pa.BufferOutputStream()  # Arrow's own memory, which its threads may use until the end
    with stream:
        while memory.tell() < MEMORY_BYTES:
            block = stream.read(START_BYTES)
            memory.write(decoder.decode(block, not block).encode())
            if not block:
                return pa.BufferReader(memory.getvalue())
        with NamedTemporaryFile() as file:
            file.write(memory.getvalue())
            while block := stream.read(START_BYTES):
                file.write(decoder.decode(block).encode())
            file.write(decoder.decode(b"", True).encode())
            file.flush()
            return pa.OSFile(file.name, "rb")


def is_utf8(encoding: str) -> bool:
    """Whether text in this encoding is also text in UTF-8."""
    return codecs.lookup(encoding).name in ("utf-8", "ascii")


def find_delimiter(path: str, text: str) -> str:
    """The delimiter that splits most lines into the same number of fields; a tab in .tsv files."""
    return "\t" if is_tsv(path) else max(DELIMITERS, key=lambda one: _score(first_rows(text, one)))


def first_rows(text: str, delimiter: str) -> list[list[str]]:
    """The first rows of the start of a file, as stripped fields. A row with a wrong quote has no fields."""
    last_end = max(text.rfind("\n"), text.rfind("\r"))
    whole = text[: last_end + 1] if len(text) > WHOLE_CHARACTERS and last_end >= 0 else text
    lines = csv.reader(
        io.StringIO(whole, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows: list[list[str]] = []
    while len(rows) <= SAMPLE_ROWS:
        try:
            row = next(lines, None)
        except csv.Error:
            rows.append([])
            continue
        if row is None:
            break
        if row:
            rows.append([field.strip() for field in row])
    return rows


def _score(rows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """The share of lines with the commonest number of fields, and that number; 0 for lines of one field."""
    if not rows or len(rows[0]) < 2:
        return 0.0, 0
    width, count = Counter(map(len, rows)).most_common(1)[0]
    return (count / len(rows) if width > 1 else 0.0), width


def _is_valid(raw: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(raw)
    except UnicodeDecodeError:
        return False
    return True
