"""One type for each column over all files of a source, and the cast to it."""

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from mmoe.data.data_files import name_files
from mmoe.errors import UserError
from mmoe.raw.frame_column import is_number_type

TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())
TEXT_CODES = pa.dictionary(pa.int32(), pa.string())


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
        UserError: the type cannot hold a value, or bytes are not UTF-8 text.
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


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type for values of both types.

    Integers and floats become floats. Numbers and text, or numbers and bytes, become text.
    """
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
