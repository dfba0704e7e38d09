"""Read a comma-separated file without a header, and reject it if any line is invalid.

Fields may have spaces around them. Empty lines and a byte order mark are skipped. Without that mark, text is
latin-1. A quote is an ordinary character. Arrow parses the file. After an error, the lines are read one by
one, to name the line and the column.
"""

import codecs
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from mmoe.checks.fields import MAX_FLOAT32
from mmoe.data.text_blocks import Block, blocks, split_lines
from mmoe.errors import UserError

LEVEL_TYPE = pa.dictionary(pa.int32(), pa.binary())


class Format(NamedTuple):
    """The fields of a line.

    `columns` are their names, in order. `numeric` are the columns of numbers, which must be finite in
    float32; the other columns are categorical. `allowed` limits the levels of some columns.
    """

    columns: Sequence[str]
    numeric: Collection[str]
    allowed: Mapping[str, Collection[str]]


def read_rows(path: Path, format: Format) -> pd.DataFrame:
    """Read every row of a plain or a gzip file.

    Returns:
        Numeric columns as float64, the others as categoricals of stripped text. `NA` and `?` are levels.

    Raises:
        UserError: the file cannot be read, or a field is invalid; names file, line and column.
    """
    columns, numeric, _ = format
    types = {c: pa.float64() if c in numeric else LEVEL_TYPE for c in columns}
    encoding = "latin-1"
    tables = []
    with closing(blocks(path)) as parts:
        for block in parts:
            encoding = block.encoding or encoding
            try:
                tables.append(parse(block.content, types))
            except pa.ArrowInvalid as error:
                raise _first_error(path, format, str(error)) from None
    if not tables:
        raise UserError(f"{path}: has no rows")
    table = pa.concat_tables(tables)
    values = (table[c].to_numpy() if c in numeric else _categorical(table[c], encoding) for c in columns)
    frame = pd.DataFrame(dict(zip(columns, values, strict=True)))
    if not _is_valid(frame, format):
        raise _first_error(path, format, "a field is invalid")
    return frame


def read_numbers(path: Path, columns: Sequence[str]) -> Generator[np.ndarray]:
    """Read a file that holds only numbers, in blocks of finite float32 [rows, columns].

    Raises:
        UserError: see `read_rows`.
    """
    format, types = Format(columns, columns, {}), dict.fromkeys(columns, pa.float32())
    with closing(blocks(path)) as parts:
        for block in parts:
            try:
                numbers = np.stack([column.to_numpy() for column in parse(block.content, types)], axis=1)
            except pa.ArrowInvalid as error:
                raise _first_error(path, format, str(error)) from None
            if not np.isfinite(numbers).all():
                raise _first_error(path, format, "a number is not finite")
            yield numbers


def parse(content: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Parse whole lines with one field for each of `types`.

    Raises:
        pyarrow.ArrowInvalid: a line has too few or too many fields, or a field has the wrong type.
    """
    # Arrow skips a byte order mark at the start of the content. But `blocks` has removed the file's mark, so
    # this mark is text. Arrow does not skip it after an empty line.
    guard = b"\n" if content.startswith(codecs.BOM_UTF8) else b""
    # This copies the content into Arrow's memory. If Arrow's threads still hold Python's memory when the
    # interpreter exits, they can abort the process (std::terminate).
    sink = pa.BufferOutputStream()
    sink.write(guard + content)
    return csv.read_csv(
        pa.BufferReader(sink.getvalue()),
        # The content is one block, because Arrow rejects lines that are longer than a block.
        csv.ReadOptions(column_names=list(types), use_threads=False, block_size=len(content) + 2),
        csv.ParseOptions(quote_char=False, double_quote=False, escape_char=False),
        csv.ConvertOptions(column_types=types, null_values=[], check_utf8=False),
    )


def _is_valid(frame: pd.DataFrame, format: Format) -> bool:
    """Whether all numbers are finite in float32, and all levels are allowed and not empty."""
    finite = all((frame[c].abs() <= MAX_FLOAT32).all() for c in format.numeric)
    levels = {c: set(frame[c].cat.categories) for c in format.columns if c not in format.numeric}
    return finite and all("" not in v and v <= set(format.allowed.get(c, v)) for c, v in levels.items())


def _categorical(chunks: pa.ChunkedArray, encoding: str) -> pd.Categorical:
    """A categorical with sorted, stripped levels. Arrow keeps the space that follows a comma."""
    array = chunks.combine_chunks()
    raw = [value.strip(b" \t").decode(encoding) for value in array.dictionary.to_pylist()]
    levels, positions = np.unique(np.array(raw, dtype=object), return_inverse=True)
    codes = positions.astype(np.int32)[array.indices.to_numpy(zero_copy_only=False)]
    return pd.Categorical.from_codes(codes, categories=pd.Index(levels))


def _first_error(path: Path, format: Format, fallback: str) -> UserError:
    """The error of the first invalid line. If every line is valid by itself, the message is `fallback`."""
    with closing(blocks(path)) as parts:
        for block in parts:
            for number, line in split_lines(block):
                if error := _line_error(block, line, format):
                    is_header = number == 1 and not any(_is_finite(field) for field in line.split(","))
                    hint = " (a header line? the file must have none)" if is_header else ""
                    return UserError(f"{path}, line {number}{error}{hint}")
    return UserError(f"{path}: {fallback}")


def _line_error(block: Block, line: str, format: Format) -> str:
    """The column and the rule of the first invalid field of a line; empty if the line is valid."""
    columns, numeric, allowed = format
    encoding = block.encoding or "latin-1"
    fields = [field.strip(" \t").encode("latin-1").decode(encoding) for field in line.split(",")]
    if len(fields) != len(columns):
        return f": must have {len(columns)} comma-separated fields, has {len(fields)}"
    for position, (column, field) in enumerate(zip(columns, fields, strict=True), 1):
        where = f", column {position} ({column})"
        if field == "":
            return f"{where}: must not be empty"
        if column in numeric and not _is_finite(field):
            return f"{where}: must be a finite number, is {field[:40]!r}"
        if column in allowed and field not in allowed[column]:
            return f"{where}: must be one of {sorted(allowed[column])}, is {field[:40]!r}"
    return ""


def _is_finite(field: str) -> bool:
    """Whether Arrow, which is stricter than Python, reads the field as a number that is finite in float32."""
    try:
        return bool(abs(pc.cast(pa.scalar(field.strip(" \t")), pa.float64()).as_py()) <= MAX_FLOAT32)
    except pa.ArrowInvalid:
        return False
