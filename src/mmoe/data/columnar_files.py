"""Read Parquet and Arrow files: their column names and types, all rows, or blocks of rows.

Files of one source may differ in their types. Each column is cast to one type for all of them.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import pyarrow as pa
from pyarrow import parquet

from mmoe.data.csv_options import check_names
from mmoe.data.data_files import PARQUET, file_kind, open_file, reading
from mmoe.errors import UserError

# Types that become text. Some writers of Parquet store text as bytes.
TEXT_TYPES = (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
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
        with reading(path), open_file(path) as file:
            schema = self._reader(file).schema_arrow if self.is_parquet else _open(file).schema
        if self.is_parquet:
            self._text = [field.name for field in schema if field.type in (pa.string(), pa.large_string())]
        types = [TEXT_CODES if field.name in self._text else field.type for field in schema]
        self.schema = pa.schema(zip(schema.names, types, strict=True))
        self.names: list[str] = self.schema.names
        check_names(self.names, path)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of the columns. Parquet is decoded by several threads."""
        if not self.is_parquet:
            parts = list(self.batches(columns))
            return pa.concat_tables(parts) if parts else self.schema.empty_table().select(columns)
        with reading(self.path), open_file(self.path) as file:
            return _checked(self._reader(file).read(list(columns)), columns)

    def batches(self, columns: Sequence[str], rows: int = 65536) -> Iterator[pa.Table]:
        """Blocks of rows: of Parquet at most `rows` rows, of Arrow as they are in the file."""
        with reading(self.path), open_file(self.path) as file:
            if self.is_parquet:
                batches = self._reader(file).iter_batches(rows, columns=list(columns))
            else:
                reader = _open(file, [self.names.index(name) for name in columns])
                is_stream = isinstance(reader, pa.RecordBatchReader)
                batches = (
                    iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))
                )
            for batch in batches:
                table = _checked(pa.Table.from_batches([batch]), columns)
                yield table

    def _reader(self, file: pa.NativeFile) -> parquet.ParquetFile:
        """Checksums of pages are verified where the file has them."""
        return parquet.ParquetFile(
            file, page_checksum_verification=True, pre_buffer=True, read_dictionary=self._text
        )


def common_schema(files: Sequence[ColumnarFile], columns: Sequence[str]) -> pa.Schema:
    """For each column the type that holds the values of all files.

    Raises:
        UserError: there is no such type.
    """
    schema = []
    for name in columns:
        types = [_plain(file.schema.field(name).type) for file in files]
        try:
            schema.append((name, reduce(_common_type, types)))
        except pa.ArrowTypeError:
            other, first = next(
                (kind, file) for kind, file in zip(types, files, strict=True) if kind != types[0]
            )
            what = f"holds {other}, and {types[0]} in {files[0].path}"
            raise UserError(f"{first.path}, column {name}: {what}") from None
    return pa.schema(schema)


def cast(table: pa.Table, schema: pa.Schema, path: str) -> pa.Table:
    """Cast a part of the file at `path` to the schema of all files."""
    with reading(path):
        return table.cast(schema)


def _open(
    file: pa.NativeFile, positions: Sequence[int] | None = None
) -> pa.RecordBatchReader | pa.ipc.RecordBatchFileReader:
    """Open an Arrow file or stream and read only the columns at these positions."""
    start = file.read(len(FILE_MAGIC))
    file.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=list(positions) if positions else None)
    return (pa.ipc.open_file if start == FILE_MAGIC else pa.ipc.open_stream)(file, options=options)


def _checked(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns in this order. Arrow does not check text and codes of dictionaries when it reads them."""
    table = table.select(columns)
    table.validate(full=True)
    return table


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type as which a column is read: one type of text, dictionaries with codes of 32 bits."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), _plain(kind.value_type))
    return pa.string() if kind in TEXT_TYPES or pa.types.is_fixed_size_binary(kind) else kind


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type for values of both types: integers and floats become floats, numbers and text become text."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        values = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other)]
        return _common_type(*values)
    if all(map(_is_simple, (one, other))) and pa.string() in (one, other):
        return pa.string()
    fields = [pa.schema([("", kind)]) for kind in (one, other)]
    return pa.unify_schemas(fields, promote_options="permissive").field(0).type


def _is_simple(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_string(kind))
