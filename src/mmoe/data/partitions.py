"""Cut the files of a table into partitions that are read and encoded independently, in bounded memory."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mmoe.data.column_types import cast
from mmoe.data.csv_columns import ColumnType, TextRules, convert_column
from mmoe.data.csv_file import CsvFile
from mmoe.data.table_files import locate, open_checked, regroup
from mmoe.errors import RowError

# A partition has about this many rows. It is smaller at the end of a file, and a CSV file is one partition.
PARTITION_ROWS = 2**20
CHUNK_ROWS = 2**18  # rows in memory at a time


@dataclass(frozen=True)
class Partition:
    """A part of a file: some of its row groups, or all of it.

    Attributes:
        source: `train`, `validation` or `test`.
        file: the file's path or URL.
        groups: the row groups of a Parquet file, or the record batches of an Arrow file; (0,) for CSV.
        first_row: the number of the first row among all rows of the source, from 0.
        file_row: the number of the first row in the file, from 0.
        num_rows: the number of rows.
    """

    source: str
    file: str
    groups: tuple[int, ...]
    first_row: int
    file_row: int
    num_rows: int


@dataclass(frozen=True)
class FileScan:
    """What a first look at a file finds: the rows of each of its groups, and the types of its columns."""

    path: str
    rows_per_group: tuple[int, ...]
    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]


def scan_file(file: str, rules: TextRules, columns: Sequence[str]) -> FileScan:
    """Count the rows of a file, and find the types of its columns. Parquet states both in its footer.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    opened = open_checked(file, rules.csv, columns)
    if not isinstance(opened, CsvFile):
        return FileScan(file, tuple(opened.rows_per_group()), tuple(opened.names), tuple(opened.types))
    found = {name: ColumnType(rules.csv) for name in columns if name not in rules.text}
    num_rows = 0
    for part in opened.batches(columns):
        num_rows += len(part)
        for name, column in found.items():
            column.add(part[name])
    types = (found[name].type if name in found else pa.string() for name in columns)
    return FileScan(file, (num_rows,), tuple(columns), tuple(types))


def cut_partitions(source: str, scans: Sequence[FileScan]) -> list[Partition]:
    """The partitions of a source, in the order of its rows."""
    partitions: list[Partition] = []
    first_row = 0
    for found in scans:
        groups: list[int] = []
        file_row = count = 0
        for number, rows in enumerate(found.rows_per_group):
            groups.append(number)
            count += rows
            is_last = number == len(found.rows_per_group) - 1
            if count >= PARTITION_ROWS or (is_last and count):
                place = (first_row, file_row, count)
                partitions.append(Partition(source, found.path, tuple(groups), *place))
                first_row += count
                file_row += count
                groups, count = [], 0
    return partitions


def read_partition(
    partition: Partition, rules: TextRules, types: pa.Schema, columns: Sequence[str]
) -> Generator[pa.Table]:
    """The rows of a partition in chunks of at most `CHUNK_ROWS` rows, in the types of the whole source.

    Raises:
        UserError: a value is not a number; names the file and the line.
    """
    opened = open_checked(partition.file, rules.csv, columns)
    if isinstance(opened, CsvFile):
        parts = _converted(opened, rules, types, columns)
    else:
        schema = pa.schema([types.field(name) for name in columns])
        batches = opened.batches(columns, CHUNK_ROWS, partition.groups)
        parts = (cast(part, schema, partition.file) for part in batches)
    yield from regroup(parts, CHUNK_ROWS)


def _converted(
    file: CsvFile, rules: TextRules, types: pa.Schema, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The rows of a CSV file, block by block."""
    count = 0
    for part in file.batches(columns):
        arrays = []
        for name in columns:
            try:
                arrays.append(convert_column(part[name], name, types.field(name).type, rules))
            except RowError as error:
                wrong = RowError(error.column, count + error.row, error.rule)
                raise locate([file.path], rules.csv, wrong) from None
        yield pa.table(arrays, names=columns)
        count += len(part)
