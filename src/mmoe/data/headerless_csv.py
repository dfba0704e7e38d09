"""Read a comma-separated file without a header, strictly: all of it, or an error that says where.

Arrow reads the file; only when it finds something wrong are the lines walked to name line and column.
Fields may have spaces around them; empty lines are passed over, and so is a byte order mark. Text is
latin-1, unless a byte order mark says otherwise; a quote is text.
"""

import codecs
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from mmoe.data.text_blocks import Block, blocks, split
from mmoe.errors import UserError

LARGEST = float(np.finfo(np.float32).max)  # numbers become float32
LEVELS = pa.dictionary(pa.int32(), pa.binary())


def read_rows(
    path: Path,
    columns: Sequence[str],
    numeric: Collection[str],
    allowed: Mapping[str, Collection[str]],
) -> pd.DataFrame:
    """Read every row of `path`.

    Args:
        path: a plain or a gzip file.
        columns: names of the fields, in order.
        numeric: names of the columns that hold numbers, finite in float32; the others hold levels.
        allowed: columns in which only these levels may occur.

    Returns:
        Numeric columns as float64, the others as categoricals of stripped text. `NA` and `?` are levels.

    Raises:
        UserError: the file cannot be read, or a field breaks a rule; names file, line and column.
    """
    types = {c: pa.float64() if c in numeric else LEVELS for c in columns}
    encoding = "latin-1"
    tables = []
    with closing(blocks(path)) as parts:
        for block in parts:
            encoding = block.encoding or encoding
            try:
                tables.append(table(block.content, types))
            except pa.ArrowInvalid as error:
                raise _first_mistake(path, columns, numeric, allowed, str(error)) from None
    if not tables:
        raise UserError(f"{path}: has no rows")
    whole = pa.concat_tables(tables)
    frame = pd.DataFrame(
        {
            c: whole[c].to_numpy() if c in numeric else _levels(whole[c].combine_chunks(), encoding)
            for c in columns
        }
    )
    if not _is_clean(frame, numeric, allowed):
        raise _first_mistake(path, columns, numeric, allowed, "a field breaks a rule")
    return frame


def read_numbers(path: Path, columns: Sequence[str]) -> Generator[np.ndarray]:
    """Read a file of numbers alone, block by block: float32 arrays [rows, columns], and finite.

    Raises:
        UserError: as `read_rows`.
    """
    types = dict.fromkeys(columns, pa.float32())
    with closing(blocks(path)) as parts:
        for block in parts:
            try:
                numbers = np.stack([column.to_numpy() for column in table(block.content, types)], axis=1)
            except pa.ArrowInvalid as error:
                raise _first_mistake(path, columns, columns, {}, str(error)) from None
            if not np.isfinite(numbers).all():
                raise _first_mistake(path, columns, columns, {}, "a number is not finite")
            yield numbers


def table(content: bytes, types: Mapping[str, pa.DataType], separator: str = ",") -> pa.Table:
    """Parse whole lines, a field for each of `types`; one of null type is left out.

    Raises:
        pyarrow.ArrowInvalid: a line has too few or too many fields, or a field is not of its type.
    """
    # Arrow passes over a byte order mark, which in the middle of a file is text, but never over two.
    guard = b"\n" if content.startswith(codecs.BOM_UTF8) else b""
    # A copy in Arrow's own memory: its threads must hold nothing of Python's, or they may end the process
    # (std::terminate) when the interpreter ends before they do.
    sink = pa.BufferOutputStream()
    sink.write(guard + content)
    wanted = {name: kind for name, kind in types.items() if not pa.types.is_null(kind)}
    return csv.read_csv(
        pa.BufferReader(sink.getvalue()),
        csv.ReadOptions(column_names=list(types), use_threads=False, block_size=len(content) + 2),
        csv.ParseOptions(delimiter=separator, quote_char=False, double_quote=False, escape_char=False),
        csv.ConvertOptions(
            column_types=wanted, include_columns=list(wanted), null_values=[], check_utf8=False
        ),
    )


def _is_clean(frame: pd.DataFrame, numeric: Collection[str], allowed: Mapping[str, Collection[str]]) -> bool:
    """Whether numbers are finite, no level is empty, and all levels are allowed."""
    finite = all((frame[c].abs() <= LARGEST).all() for c in numeric)
    levels = {str(c): set(frame[c].cat.categories) for c in frame if c not in numeric}
    known = all("" not in found and found <= set(allowed.get(c, found)) for c, found in levels.items())
    return finite and known


def _levels(array: pa.DictionaryArray, encoding: str) -> pd.Categorical:
    """Codes and sorted, stripped levels: Arrow keeps the space behind the comma in its dictionary."""
    raw = [value.strip(b" \t").decode(encoding) for value in array.dictionary.to_pylist()]
    levels, positions = np.unique(np.array(raw, dtype=object), return_inverse=True)
    codes = positions.astype(np.int32)[array.indices.to_numpy(zero_copy_only=False)]
    return pd.Categorical.from_codes(codes, categories=pd.Index(levels))


def _first_mistake(
    path: Path,
    columns: Sequence[str],
    numeric: Collection[str],
    allowed: Mapping[str, Collection[str]],
    otherwise: str,
) -> UserError:
    """The error for the first line that breaks a rule, or for the file as a whole."""
    with closing(blocks(path)) as parts:
        for block in parts:
            for number, line in split(block):
                if rule := _mistake(block, line, columns, numeric, allowed):
                    header = number == 1 and not any(_is_finite(field) for field in line.split(","))
                    hint = " (a header line? the file must have none)" if header else ""
                    return UserError(f"{path}, line {number}{rule}{hint}")
    return UserError(f"{path}: {otherwise}")


def _mistake(
    block: Block,
    line: str,
    columns: Sequence[str],
    numeric: Collection[str],
    allowed: Mapping[str, Collection[str]],
) -> str:
    """The rule that a line breaks, with its column, or nothing."""
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
    """Whether Arrow, whose notation is stricter than Python's, reads the field as a number of float32."""
    try:
        return bool(abs(pc.cast(pa.scalar(field.strip(" \t")), pa.float64()).as_py()) <= LARGEST)
    except pa.ArrowInvalid:
        return False
