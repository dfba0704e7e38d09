"""Read Parquet and Arrow files: their column names and types, all rows, or blocks of rows."""

import base64
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import parquet

from mmoe.data.column_types import TEXT_CODES
from mmoe.data.csv_options import check_names
from mmoe.data.data_files import PARQUET, file_errors, file_kind, open_file
from mmoe.errors import UserError

FILE_MAGIC = b"ARROW1"  # a stream in Arrow's format has none


class ColumnarFile:
    """A Parquet or Arrow file and the types of its columns.

    Text of Parquet is read as dictionaries, which takes a third of the time.

    Raises:
        UserError: the file cannot be read, or two columns have the same name.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_parquet = file_kind(path) == PARQUET
        self._text: list[str] = []  # columns that are read as dictionaries
        with file_errors(path), open_file(path) as file:
            if self.is_parquet:
                reader = self._reader(file)
                schema, self._num_rows = reader.schema_arrow, reader.metadata.num_rows
                _check_types(schema, reader.metadata)
            else:
                schema = _open(file).schema
        if self.is_parquet:
            self._text = [field.name for field in schema if field.type in (pa.string(), pa.large_string())]
        self.types = [TEXT_CODES if field.name in self._text else field.type for field in schema]
        self.names: list[str] = schema.names
        self._stored_names: list[str] = schema.names  # `names` may be changed
        check_names(self.names, path)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of the columns. Parquet is decoded by several threads."""
        if not self.is_parquet:
            parts = list(self.batches(columns))
            types = [(name, self.types[self.names.index(name)]) for name in columns]
            return pa.concat_tables(parts) if parts else pa.schema(types).empty_table()
        with file_errors(self.path), open_file(self.path) as file:
            return self._checked(self._reader(file).read(self._stored(columns)), columns)

    def batches(
        self, columns: Sequence[str], rows: int = 65536, groups: Sequence[int] | None = None
    ) -> Iterator[pa.Table]:
        """The rows in blocks: of at most `rows` rows from Parquet, and one for each record batch from Arrow.

        `groups` are the numbers of the wanted row groups of Parquet or record batches of Arrow; None: all.
        """
        with file_errors(self.path), open_file(self.path) as file:
            if self.is_parquet:
                wanted = None if groups is None else list(groups)
                reader = self._reader(file)
                batches = reader.iter_batches(rows, row_groups=wanted, columns=self._stored(columns))
            else:
                batches = _record_batches(_open(file, [self.names.index(name) for name in columns]), groups)
            count = 0
            for batch in batches:
                count += len(batch)
                yield self._checked(pa.Table.from_batches([batch]), columns)
            if self.is_parquet and groups is None and count != self._num_rows:
                raise pa.ArrowInvalid(f"has {count} rows, and its footer says {self._num_rows}")

    def _stored(self, columns: Sequence[str]) -> list[str]:
        """The names of the columns in the file."""
        return [self._stored_names[self.names.index(name)] for name in columns]

    def _checked(self, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        """The columns in this order. Their text and dictionary codes are checked, because Arrow does not."""
        table = table.select(self._stored(columns)).rename_columns(list(columns))
        for name in columns:
            try:
                table[name].validate(full=True)
            except pa.ArrowInvalid as error:
                what = str(error).rpartition(": ")[2]
                raise UserError(f"{self.path}, column {name}: damaged, or not UTF-8 text ({what})") from None
        return table

    def rows_per_group(self) -> list[int]:
        """The number of rows of each row group of Parquet, or of each record batch of Arrow."""
        with file_errors(self.path), open_file(self.path) as file:
            if self.is_parquet:
                footer = self._reader(file).metadata
                return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
            return [batch.num_rows for batch in _record_batches(_open(file), None)]

    def _reader(self, file: pa.NativeFile) -> parquet.ParquetFile:
        """Open a Parquet file. The checksums of its pages are verified if it has them."""
        return parquet.ParquetFile(
            file, page_checksum_verification=True, pre_buffer=True, read_dictionary=self._text
        )


def _open(
    file: pa.NativeFile, positions: Sequence[int] | None = None
) -> pa.RecordBatchReader | pa.ipc.RecordBatchFileReader:
    """Open an Arrow file or stream and read only the columns at these positions."""
    start = file.read(len(FILE_MAGIC))
    file.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=list(positions) if positions else None)
    return (pa.ipc.open_file if start == FILE_MAGIC else pa.ipc.open_stream)(file, options=options)


def _record_batches(
    reader: pa.RecordBatchReader | pa.ipc.RecordBatchFileReader, groups: Sequence[int] | None
) -> Iterator[pa.RecordBatch]:
    """The record batches of a file or stream, or those with the numbers `groups`."""
    if isinstance(reader, pa.RecordBatchReader):
        return (batch for i, batch in enumerate(reader) if groups is None or i in groups)
    return map(reader.get_batch, range(reader.num_record_batches) if groups is None else groups)


def _check_types(schema: pa.Schema, metadata: parquet.FileMetaData) -> None:
    """Compare the types of floats and decimals with those that Arrow recorded when it wrote the file.

    A damaged footer, which has no checksum, may give a wrong type that would change the numbers.
    """
    stored = (metadata.metadata or {}).get(b"ARROW:schema")
    written = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored))) if stored else schema
    types = {field.name: field.type for field in written}
    for field in schema:
        kind, other = field.type, types.get(field.name, field.type)
        if pa.types.is_dictionary(other) and not pa.types.is_dictionary(kind):
            other = other.value_type  # Parquet only restores dictionaries of text
        if pa.types.is_decimal(kind) and pa.types.is_decimal(other):
            differ = kind.scale != other.scale
        else:
            differ = kind != other and (pa.types.is_floating(kind) or pa.types.is_floating(other))
        if differ:
            raise pa.ArrowInvalid(f"column {field.name} holds {kind}, and was written as {other}")
