"""Read one table from CSV, Parquet or Arrow files.

    files -> the type of each column over all files -> tables of the wanted columns

`read_table` finds the types of CSV columns: int64, float64, text, or null if every value is missing; dates
and booleans stay text. In `read_batches`, all of them are text. Other files keep their types: dictionaries,
lists, decimals, dates, timestamps and booleans. Text of Parquet comes as dictionaries.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pyarrow as pa

from mmoe.data.column_types import cast, common_schema
from mmoe.data.columnar_files import ColumnarFile
from mmoe.data.csv_columns import ColumnType, TextRules, convert_column, convert_text
from mmoe.data.csv_file import CsvFile
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import CSV, file_kind, name_files
from mmoe.errors import RowError, UserError


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
    files: Sequence[str],
    csv: CsvOptions,
    columns: Sequence[str] | None = None,
    text: Collection[str] = (),
    numbers: Collection[str] = (),
    max_rows: int | None = None,
    keep_bytes: bool = False,
) -> pa.Table:
    """All rows of the files, in the order of the files, or the first `max_rows`.

    `columns` are the wanted columns and their order; None: all columns, which must then be the same in every
    file. `text` names CSV columns that stay text, as written, even if all their values are numbers.
    `numbers` names CSV columns that must hold numbers, even if they look like codes. Bytes become text,
    unless `keep_bytes` is true.

    Raises:
        UserError: a file cannot be read, lacks a column or has one twice, or the files have no rows.
        RowError: a value is not a number.
    """
    if file_kind(files[0]) == CSV:
        table = _read_csv(files, TextRules(csv, text, numbers), columns, max_rows)
    elif max_rows is not None:
        table = _first(read_batches(files, csv, columns, keep_bytes=keep_bytes), max_rows)
    else:
        opened = [ColumnarFile(file) for file in files]
        wanted = _check_columns(opened, columns)
        schema = common_schema(opened, wanted, keep_bytes)
        table = pa.concat_tables([cast(file.read(wanted), schema, file.path) for file in opened])
        if any(map(pa.types.is_dictionary, schema.types)):
            table = table.unify_dictionaries()
    _check_rows(len(table), files)
    return table


def read_batches(
    files: Sequence[str],
    csv: CsvOptions,
    columns: Sequence[str] | None = None,
    chunk_rows: int = 65536,
    keep_bytes: bool = False,
) -> Iterator[pa.Table]:
    """The rows of the files in tables of at most `chunk_rows` rows. Memory does not grow with the files.

    CSV columns are text. There may be no rows. Bytes become text, unless `keep_bytes` is true.

    Raises:
        UserError: as in `read_table`.
    """
    if file_kind(files[0]) == CSV:
        texts = [CsvFile(file, csv) for file in files]
        wanted = _check_columns(texts, columns)
        parts = (_texts(part, csv) for file in texts for part in file.batches(wanted))
    else:
        opened = [ColumnarFile(file) for file in files]
        wanted = _check_columns(opened, columns)
        schema = common_schema(opened, wanted, keep_bytes)
        parts = (cast(p, schema, file.path) for file in opened for p in file.batches(wanted, chunk_rows))
    with closing(parts):
        for part in parts:
            yield from (part.slice(start, chunk_rows) for start in range(0, len(part), chunk_rows))


def locate(files: Sequence[str], csv: CsvOptions, error: RowError) -> UserError:
    """The error of a row, with its file, and its line (in text) or its row (else), counted from 1."""
    row = error.row
    for path in files:
        file = _open(path, csv)
        (column,) = _check_columns([file], [error.column])
        if isinstance(file, CsvFile):
            for line, _ in file.rows():
                if row == 0:
                    position = file.names.index(column) + 1
                    return UserError(f"{path}, line {line}, column {position} ({column}): {error.rule}")
                row -= 1
        else:
            count = sum(map(len, file.batches([column])))
            if row < count:
                return UserError(f"{path}, column {column}, row {row + 1}: {error.rule}")
            row -= count
    return error


def _read_csv(
    files: Sequence[str], rules: TextRules, columns: Sequence[str] | None, max_rows: int | None
) -> pa.Table:
    opened = [CsvFile(file, rules.csv) for file in files]
    wanted = _check_columns(opened, columns)
    raw = _first((part for file in opened for part in file.batches(wanted)), max_rows)
    _check_rows(len(raw), files)

    def convert(name: str) -> pa.ChunkedArray:
        kind = pa.string()
        if name not in rules.text:
            found = ColumnType(rules.csv)
            found.add(raw[name])
            kind = found.type
        return convert_column(raw[name], name, kind, rules)

    with ThreadPoolExecutor() as threads:
        return pa.table(list(threads.map(convert, wanted)), names=wanted)


def regroup(parts: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
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


def _first(parts: Iterator[pa.Table], max_rows: int | None) -> pa.Table:
    """The first rows of tables, or all rows if `max_rows` is None."""
    kept, count = [], 0
    for part in parts:
        kept.append(part)
        count += len(part)
        if max_rows is not None and count >= max_rows:
            break
    if not kept:
        return pa.table({})
    table = pa.concat_tables(kept)
    return table if max_rows is None else table.slice(0, max_rows)


def _texts(part: pa.Table, csv: CsvOptions) -> pa.Table:
    """The columns without blanks around their values."""
    columns = [convert_text(column, pa.string(), csv) for column in part.columns]
    return pa.table(columns, names=part.column_names)


def open_checked(file: str, csv: CsvOptions, columns: Sequence[str]) -> CsvFile | ColumnarFile:
    """Open a file, and check that it has these columns, as `check_columns` does."""
    opened = _open(file, csv)
    _check_columns([opened], columns)
    return opened


def _open(file: str, csv: CsvOptions) -> CsvFile | ColumnarFile:
    return CsvFile(file, csv) if file_kind(file) == CSV else ColumnarFile(file)


def _check_columns(files: Sequence[CsvFile | ColumnarFile], columns: Sequence[str] | None) -> list[str]:
    """The names of the wanted columns, after a check that every file has them.

    A file's column whose name differs from a wanted one in case or blanks gets that name.
    """
    wanted = list(files[0].names if columns is None else columns)
    for file in files:
        file.names = _with_wanted_names(file, wanted)
        if columns is None and len(file.names) > len(wanted):
            extra = next(name for name in file.names if name not in wanted)
            raise UserError(f"{file.path}: must have the columns of {files[0].path}; also has {extra!r}")
    return wanted


def _with_wanted_names(file: CsvFile | ColumnarFile, wanted: Sequence[str]) -> list[str]:
    names, missing = list(file.names), []
    free = [i for i, name in enumerate(names) if name not in set(wanted)]
    for name in sorted(set(wanted) - set(names), key=wanted.index):
        similar = [i for i in free if _folded(names[i]) == _folded(name)]
        if len(similar) > 1:
            what = " and ".join(repr(names[i]) for i in similar[:2])
            raise UserError(f"{file.path}: must have one column {name!r}; has {what}")
        if similar:
            names[similar[0]] = name
        else:
            missing.append(name)
    if len(missing) == 1:
        near = difflib.get_close_matches(missing[0], names, 1)
        hint = f"the nearest is {near[0]!r}" if near else f"it begins with {names[:3]}"
        raise UserError(f"{file.path}: must have a column {missing[0]!r}; {hint}")
    if missing:
        listed = ", ".join(map(repr, missing[:5])) + f" and {len(missing) - 5} more" * (len(missing) > 5)
        hint = ""
        if isinstance(file, CsvFile) and len(names) == 1:
            hint = f", with the delimiter {file.delimiter!r} (csv.delimiter)"
        raise UserError(f"{file.path}: must have the columns {listed}; it begins with {names[:3]}{hint}")
    return names


def _folded(name: str) -> str:
    return name.strip().casefold()


def _check_rows(count: int, files: Sequence[str]) -> None:
    if not count:
        raise UserError(f"{name_files(files)}: must have at least one row; has none")
