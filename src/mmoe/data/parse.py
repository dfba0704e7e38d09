"""Read a comma-separated file without a header, strictly: all of it, or an error that says where.

Arrow reads the file; only when it finds something wrong are the lines walked to name line and column.
Fields may have spaces around them; empty lines are passed over, and so is UTF-8's byte order mark. Text is
latin-1.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

BYTE_ORDER_MARK = codecs.BOM_UTF8.decode("latin-1")
LARGEST = float(np.finfo(np.float32).max)  # numbers become float32


def read_rows(
    path: Path,
    columns: Sequence[str],
    numeric: Collection[str],
    allowed: Mapping[str, Collection[str]],
) -> pd.DataFrame:
    """Read every row of `path`.

    Args:
        path: a plain or a gzip file (by its `.gz` suffix).
        columns: names of the fields, in order.
        numeric: names of the columns that hold numbers, finite in float32; the others hold levels.
        allowed: columns in which only these levels may occur.

    Returns:
        Numeric columns as float64, the others as categoricals of stripped text. `NA` and `?` are levels.

    Raises:
        ValueError: the file cannot be read, or a field breaks a rule; names file, line and column.
    """
    with _mistakes(path, columns, numeric, allowed), open_bytes(path) as file:
        table = csv.read_csv(file, **_options(_types(columns, numeric)))
    frame = _frame(table, numeric)
    if frame.empty or not _is_clean(frame, numeric, allowed):
        raise _first_mistake(path, columns, numeric, allowed, "no rows")
    return frame


def read_chunks(path: Path, columns: Sequence[str], numeric: Collection[str]) -> Iterator[pd.DataFrame]:
    """Read a file chunk by chunk, of about a megabyte: memory does not grow with it.

    Raises:
        ValueError: as `read_rows`, when the chunk with the mistake is asked for.
    """
    with _mistakes(path, columns, numeric, {}), open_bytes(path) as file:
        for batch in csv.open_csv(file, **_options(_types(columns, numeric))):
            frame = _frame(pa.Table.from_batches([batch]), numeric)
            if not _is_clean(frame, numeric, {}):
                raise _first_mistake(path, columns, numeric, {}, "a field breaks a rule")
            yield frame


def count_fields(path: Path) -> int:
    """Fields of the first line that is not empty; 0 without one.

    Raises:
        ValueError: the file cannot be read.
    """
    with _mistakes(path, (), (), {}):
        return next((line.count(",") + 1 for _, line in _lines(path)), 0)


def _types(columns: Sequence[str], numeric: Collection[str]) -> dict[str, pa.DataType]:
    return {c: pa.float64() if c in numeric else pa.dictionary(pa.int32(), pa.binary()) for c in columns}


def _frame(table: pa.Table, numeric: Collection[str]) -> pd.DataFrame:
    columns = {
        c: table[c].to_numpy() if c in numeric else _levels(table[c].combine_chunks())
        for c in table.column_names
    }
    return pd.DataFrame(columns)


def _is_clean(frame: pd.DataFrame, numeric: Collection[str], allowed: Mapping[str, Collection[str]]) -> bool:
    """Whether numbers are finite, no level is empty, and all levels are allowed."""
    finite = all((frame[c].abs() <= LARGEST).all() for c in numeric)
    levels = {str(c): set(frame[c].cat.categories) for c in frame if c not in numeric}
    known = all("" not in found and found <= set(allowed.get(c, found)) for c, found in levels.items())
    return finite and known


def read_numbers(path: Path, columns: Sequence[str]) -> Iterator[np.ndarray]:
    """Read a file of numbers alone, block by block: float32 arrays [rows, columns], and finite.

    Raises:
        ValueError: as `read_rows`.
    """
    with _mistakes(path, columns, columns, {}), open_bytes(path) as file:
        for batch in csv.open_csv(file, **_options(dict.fromkeys(columns, pa.float32()))):
            block = np.stack([column.to_numpy() for column in batch], axis=1)
            if not np.isfinite(block).all():
                raise _first_mistake(path, columns, columns, {}, "a number is not finite")
            yield block


def open_bytes(path: Path) -> IO[bytes]:
    """Open a plain or gzip file to read its bytes."""
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _options(types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    return {
        "read_options": csv.ReadOptions(column_names=list(types)),
        "parse_options": csv.ParseOptions(quote_char=False, double_quote=False, escape_char=False),
        "convert_options": csv.ConvertOptions(column_types=types, null_values=[], check_utf8=False),
    }


@contextmanager
def _mistakes(
    path: Path,
    columns: Sequence[str],
    numeric: Collection[str],
    allowed: Mapping[str, Collection[str]],
) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into a ValueError that says where."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise _first_mistake(path, columns, numeric, allowed, str(error)) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); fetch or copy it again") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


def _levels(array: pa.DictionaryArray) -> pd.Categorical:
    """Codes and sorted, stripped levels: Arrow keeps the space behind the comma in its dictionary."""
    raw = [value.strip(b" \t").decode("latin-1") for value in array.dictionary.to_pylist()]
    levels, positions = np.unique(np.array(raw, dtype=object), return_inverse=True)
    codes = positions.astype(np.int32)[array.indices.to_numpy(zero_copy_only=False)]
    return pd.Categorical.from_codes(codes, categories=pd.Index(levels))


def _first_mistake(
    path: Path,
    columns: Sequence[str],
    numeric: Collection[str],
    allowed: Mapping[str, Collection[str]],
    otherwise: str,
) -> ValueError:
    """The error for the first line that breaks a rule, or for the file as a whole."""
    lines = 0
    for number, line in _lines(path):
        lines += 1
        fields = [field.strip(" \t") for field in line.split(",")]
        if len(fields) != len(columns):
            what = f"must have {len(columns)} comma-separated fields, has {len(fields)}"
            return ValueError(f"{path}, line {number}: {what}")
        for position, (column, field) in enumerate(zip(columns, fields, strict=True), 1):
            rule = None
            if field == "":
                rule = "must not be empty"
            elif column in numeric and not _is_finite(field):
                rule = f"must be a finite number, is {field[:40]!r}"
                if lines == 1 and not any(_is_finite(f) for f in fields):
                    rule += " (a header line? the file must have none)"
            elif column in allowed and field not in allowed[column]:
                rule = f"must be one of {sorted(allowed[column])}, is {field[:40]!r}"
            if rule:
                return ValueError(f"{path}, line {number}, column {position} ({column}): {rule}")
    return ValueError(f"{path}: {otherwise if lines else 'has no rows'}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1; a lone carriage return ends a line too."""
    with open_bytes(path) as file:
        # newline=None is universal newlines, which is what Arrow reads.
        for number, line in enumerate(io.TextIOWrapper(file, "latin-1", newline=None), 1):
            text = line.rstrip("\n").removeprefix(BYTE_ORDER_MARK if number == 1 else "")
            if text:
                yield number, text


def _is_finite(field: str) -> bool:
    try:
        return abs(float(field)) <= LARGEST and "_" not in field
    except ValueError:
        return False
