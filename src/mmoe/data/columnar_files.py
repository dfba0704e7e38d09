"""Read Parquet and Arrow files: their column names and types, all rows, or blocks of rows.

Files of one source may differ in their types. Each column is cast to one type for all of them.
"""

import base64
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
from pyarrow import parquet

from mmoe.data.csv_options import check_names
from mmoe.data.data_files import PARQUET, file_errors, file_kind, name_files, open_file
from mmoe.errors import UserError
from mmoe.raw.frame_column import is_number_type

TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())
TEXT_CODES = pa.dictionary(pa.int32(), pa.string())
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


class Typed(Protocol):
    """A file whose columns have names and types."""

    @property
    def path(self) -> str: ...

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def types(self) -> Sequence[pa.DataType]: ...


def common_schema(files: Sequence[Typed], columns: Sequence[str], keep_bytes: bool = False) -> pa.Schema:
    """For each column the type that holds the values of all files.

    Bytes become text, because some writers of Parquet store text as bytes, unless `keep_bytes` is true.

    Raises:
        UserError: there is no such type.
    """
    schema = []
    for name in columns:
        found = pa.null()
        for i, file in enumerate(files):
            kind = plain_type(file.types[file.names.index(name)], keep_bytes)
            try:
                found = _common_type(found, kind)
            except pa.ArrowTypeError:
                others = name_files([other.path for other in files[:i]])
                raise UserError(
                    f"{file.path}, column {name}: holds {kind}, and {found} in {others}"
                ) from None
        schema.append((name, found))
    return pa.schema(schema)


def plain_type(kind: pa.DataType, keep_bytes: bool) -> pa.DataType:
    """The type that a column is read as: one type for all text, and codes of 32 bits for dictionaries."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), plain_type(kind.value_type, keep_bytes))
    if kind in BYTES_TYPES or pa.types.is_fixed_size_binary(kind):
        return pa.binary() if keep_bytes else pa.string()
    return pa.string() if kind in TEXT_TYPES else kind


def cast(table: pa.Table, schema: pa.Schema, path: str) -> pa.Table:
    """Cast a part of the file at `path` to the schema of all files.

    Raises:
        UserError: the type cannot hold a value, or bytes are not text in UTF-8.
    """
    try:
        return table.cast(schema)
    except pa.ArrowInvalid as error:
        field = next(field for field in schema if not _can_cast(table[field.name], field.type))
        is_text = field.type in (pa.string(), TEXT_CODES)
        what = "UTF-8 text" if is_text else f"values of {field.type}, the type for all files"
        raise UserError(f"{path}, column {field.name}: must hold {what} ({error})") from None


def _can_cast(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


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


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type for values of both types: integers and floats become floats, numbers and text become text."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        values = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other)]
        return _common_type(*values)
    has_text = pa.string() in (one, other) or pa.binary() in (one, other)
    if has_text and (is_number_type(one) or is_number_type(other)):
        return pa.string()
    fields = [pa.schema([("", kind)]) for kind in (one, other)]
    return pa.unify_schemas(fields, promote_options="permissive").field(0).type
