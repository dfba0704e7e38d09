"""Read one table from CSV, Parquet or Arrow files, or from a DataFrame.

    files -> the type of each column over all files -> tables of the wanted columns

Columns of CSV are int64, float64, text, or null if every value is missing; dates and booleans stay text.
Other files keep their types: dictionaries, lists, decimals, dates, timestamps and booleans. Text of Parquet
comes as dictionaries.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pyarrow as pa

from mmoe.data.columnar_files import TEXT_TYPES, ColumnarFile, cast, common_schema
from mmoe.data.csv_columns import ColumnType, convert_text
from mmoe.data.csv_file import CsvFile
from mmoe.data.csv_options import CsvOptions, check_names
from mmoe.data.data_files import CSV, file_kind, find_files
from mmoe.errors import UserError

__all__ = [
    "CsvOptions",
    "check_columns",
    "find_files",
    "read_batches",
    "read_names",
    "read_table",
    "table_of_frame",
]


def read_names(files: Sequence[str], csv: CsvOptions) -> list[str]:
    """The column names of the first file."""
    return _open(files[0], csv).names


def check_columns(files: Sequence[str], csv: CsvOptions, columns: Sequence[str]) -> None:
    """Check that every file has these columns.

    Raises:
        UserError: a file lacks one; names the nearest one that it has.
    """
    _check_columns([_open(file, csv) for file in files], columns)


def read_table(
    files: Sequence[str], csv: CsvOptions, columns: Sequence[str] | None = None, text: Collection[str] = ()
) -> pa.Table:
    """All rows of the files, in the order of the files.

    `columns` are the wanted columns and their order; None: all columns, which must then be the same in every
    file. `text` names columns of CSV that stay text, as written, even if all their values are numbers.

    Raises:
        UserError: a file cannot be read, lacks a column or has one twice, or the files have no rows.
    """
    if file_kind(files[0]) == CSV:
        table = _read_csv(files, csv, columns, text)
    else:
        opened = [ColumnarFile(file) for file in files]
        wanted = _check_columns(opened, columns)
        schema = common_schema(opened, wanted)
        table = pa.concat_tables(cast(file.read(wanted), schema, file.path) for file in opened)
        if any(map(pa.types.is_dictionary, schema.types)):
            table = table.unify_dictionaries()
    _check_rows(len(table), files)
    return table


def read_batches(
    files: Sequence[str],
    csv: CsvOptions,
    columns: Sequence[str] | None = None,
    chunk_rows: int = 65536,
    text: Collection[str] = (),
) -> Iterator[pa.Table]:
    """The rows and types of `read_table`, in tables of at most `chunk_rows` rows.

    Memory does not grow with the files. CSV is read twice, first to find the types, unless `text` names
    every column.

    Raises:
        UserError: as in `read_table`.
    """
    count = 0
    for table in _regroup(_parts(files, csv, columns, chunk_rows, text), chunk_rows):
        count += len(table)
        yield table
    _check_rows(count, files)


def table_of_frame(frame: pd.DataFrame) -> pa.Table:
    """The columns of a DataFrame, without its index. Objects of several types become text.

    Raises:
        UserError: a column name is neither text nor an integer, two are equal, or there are no rows.
    """
    for name in frame.columns:
        if not isinstance(name, str | int):
            raise UserError(f"DataFrame: column names must be text, one is {name!r}")
    names = [str(name).strip() for name in frame.columns]
    check_names(names, "DataFrame")
    if not len(frame):
        raise UserError("DataFrame: must have at least one row; has none")
    return pa.table([_array_of_series(frame.iloc[:, i]) for i in range(len(names))], names=names)


def _array_of_series(series: "pd.Series[Any]") -> pa.Array:
    if isinstance(series.dtype, pd.CategoricalDtype):
        levels = _array_of_series(series.cat.categories.to_series())
        codes = pa.array(series.cat.codes.to_numpy(), mask=series.isna().to_numpy())
        return pa.DictionaryArray.from_arrays(codes.cast(pa.int32()), levels)
    try:
        array = pa.Array.from_pandas(series)
    except (pa.ArrowException, TypeError):
        array = None
    if array is None or isinstance(array, pa.ExtensionArray):  # mixed objects; intervals and periods
        texts = [
            None if is_missing else str(value)
            for value, is_missing in zip(series, series.isna(), strict=True)
        ]
        return pa.array(texts, pa.string())
    chunks = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return chunks.cast(pa.string()) if chunks.type in TEXT_TYPES else chunks


def _read_csv(
    files: Sequence[str], csv: CsvOptions, columns: Sequence[str] | None, text: Collection[str]
) -> pa.Table:
    opened = [CsvFile(file, csv) for file in files]
    wanted = _check_columns(opened, columns)
    parts = [part.select(wanted) for file in opened for part in file.batches(wanted)]
    _check_rows(sum(map(len, parts)), files)
    raw = pa.concat_tables(parts)

    def convert(name: str) -> pa.ChunkedArray:
        if name in text:
            return convert_text(raw[name], pa.string(), csv)
        found = ColumnType(csv)
        found.add(raw[name])
        return convert_text(raw[name], found.type, csv)

    with ThreadPoolExecutor() as threads:
        return pa.table(list(threads.map(convert, wanted)), names=wanted)


def _parts(
    files: Sequence[str], csv: CsvOptions, columns: Sequence[str] | None, rows: int, text: Collection[str]
) -> Iterator[pa.Table]:
    """Blocks of the files in the types of the whole table."""
    if file_kind(files[0]) != CSV:
        opened = [ColumnarFile(file) for file in files]
        wanted = _check_columns(opened, columns)
        schema = common_schema(opened, wanted)
        for file in opened:
            for part in file.batches(wanted, rows):
                yield cast(part, schema, file.path)
        return
    texts = [CsvFile(file, csv) for file in files]
    wanted = _check_columns(texts, columns)
    found = {name: ColumnType(csv) for name in wanted if name not in text}
    for source in texts if found else []:
        for part in source.batches(list(found)):
            for name, column in found.items():
                column.add(part[name])
    types = {name: found[name].type if name in found else pa.string() for name in wanted}
    for source in texts:
        for part in source.batches(wanted):
            arrays = [convert_text(part[name], kind, csv) for name, kind in types.items()]
            yield pa.table(arrays, names=wanted)


def _regroup(parts: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Tables of `rows` rows; the last one may have fewer."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= rows:
            table = pa.concat_tables(waiting)
            whole = len(table) // rows * rows
            yield from (table.slice(start, rows) for start in range(0, whole, rows))
            waiting = [table.slice(whole)]
    rest = pa.concat_tables(waiting) if waiting else []
    if len(rest):
        yield rest


def _open(file: str, csv: CsvOptions) -> CsvFile | ColumnarFile:
    return CsvFile(file, csv) if file_kind(file) == CSV else ColumnarFile(file)


def _check_columns(files: Sequence[CsvFile | ColumnarFile], columns: Sequence[str] | None) -> list[str]:
    """The names of the wanted columns, after a check that every file has them."""
    wanted = list(files[0].names if columns is None else columns)
    for file in files:
        for name in wanted:
            if name not in file.names:
                nearest = difflib.get_close_matches(name, file.names, 1, 0)
                hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
                raise UserError(f"{file.path}: must have a column {name!r}{hint}")
        if columns is None and len(file.names) > len(wanted):
            extra = next(name for name in file.names if name not in wanted)
            raise UserError(f"{file.path}: must have the columns of {files[0].path}; also has {extra!r}")
    return wanted


def _check_rows(count: int, files: Sequence[str]) -> None:
    if not count:
        others = f" and {len(files) - 1} more" * (len(files) > 1)
        raise UserError(f"{files[0]}{others}: must have at least one row; has none")
