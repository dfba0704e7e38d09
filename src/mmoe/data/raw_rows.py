"""Read the rows that a run predicts: its inputs and any other columns, in chunks."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa

from mmoe.data import census_layout
from mmoe.data.census_files import COLUMNS
from mmoe.data.csv_columns import to_numbers
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import CSV, file_kind
from mmoe.data.schema import Schema
from mmoe.data.table_files import check_columns, locate, read_batches, read_names
from mmoe.errors import RowError, UserError

Part = TypeVar("Part")


class RowFormat(NamedTuple):
    """How rows are written.

    `csv` gives the options of a file of text. Without `may_be_missing`, only columns that had missing values
    in training may have some.
    """

    csv: Callable[[str], CsvOptions]
    may_be_missing: bool


def default_format(schema: Schema) -> RowFormat:
    """How rows are written, for a run whose data module does not say it, or is not trusted."""
    options: Callable[[str], CsvOptions]
    if set(schema.input_columns) <= set(COLUMNS):
        options = partial(census_layout.find_options, schema.input_columns)
    else:
        options = _plain_options
    return RowFormat(options, may_be_missing=False)


def _plain_options(path: str) -> CsvOptions:
    return CsvOptions(missing=("",))


class RawRows(NamedTuple):
    """Rows, and their columns of ids as they are in the file.

    `locate` adds the file to an error, and the line to an error of a row.
    """

    frame: pd.DataFrame
    ids: pa.Table
    locate: Callable[[UserError], UserError]


def read_rows(
    files: Sequence[str], format: RowFormat, schema: Schema, ids: Sequence[str], chunk_rows: int
) -> Generator[RawRows]:
    """The inputs of `schema` and the columns `ids`, in chunks of at most `chunk_rows` rows.

    Raises:
        UserError: a file cannot be read or lacks a column, or a value is not a number.
    """
    is_csv = file_kind(files[0]) == CSV
    # Each file of text may have a delimiter, an encoding and a header of its own.
    parts = [([file], format.csv(file)) for file in files] if is_csv else [(files, CsvOptions())]
    inputs = {name.casefold(): name for name in schema.input_columns}
    in_file = set(read_names(*parts[0]))
    # An id may name an input in another case. It is another column if the file has both spellings.
    as_inputs = [inputs.get(name.casefold(), name) for name in ids]
    stored = [n if {n, other} <= in_file else other for n, other in zip(ids, as_inputs, strict=True)]
    names = list(dict.fromkeys([*schema.input_columns, *stored]))
    for part, csv in parts:
        check_columns(part, csv, names)
    for part, csv in parts:
        start = 0
        for table in read_batches(part, csv, names, chunk_rows):
            place = partial(_locate, part, csv, start)
            own_ids = pa.table([table[name] for name in stored], names=list(ids))
            if is_csv and not csv.has_plain_numbers:
                try:
                    table = _with_numbers(table, schema, csv)
                except RowError as error:
                    raise place(error) from None
            yield RawRows(table.to_pandas(types_mapper=pd.ArrowDtype), own_ids, place)
            start += len(table)


def read_ahead(parts: Generator[Part]) -> Generator[Part]:
    """Yield each part while a thread prepares the next one. The thread ends with the generator."""
    with closing(parts), ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, parts, None)
        while (part := upcoming.result()) is not None:
            upcoming = thread.submit(next, parts, None)
            yield part


def _with_numbers(table: pa.Table, schema: Schema, csv: CsvOptions) -> pa.Table:
    """Convert the numeric columns, because `encode` reads only plain numbers in text."""
    for column in schema.numeric:
        if not column.is_datetime:
            numbers = to_numbers(table[column.name], column.name, csv)
            table = table.set_column(table.column_names.index(column.name), column.name, numbers)
    return table


def _locate(files: Sequence[str], csv: CsvOptions, start: int, error: UserError) -> UserError:
    if isinstance(error, RowError):
        return locate(files, csv, RowError(error.column, start + error.row, error.rule))
    return UserError(f"{files[0]}: {error}")
