"""The values of a column, to guess its kind: the distinct ones, and for each row the code of its value.

N rows, D distinct values.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.data.column_types import plain_type

NOT_TEXT = "bytes that are not UTF-8 text"  # the values of a column whose type is binary


@dataclass(frozen=True)
class ColumnValues:
    """The values of a column; `longest` is the length of the longest list in a column of lists.

    Shape:
        codes: [N], the position of each row's value in `distinct` [D]; -1 where it is missing.
    """

    name: str
    type: pa.DataType
    codes: np.ndarray
    distinct: pa.Array
    longest: int = 1

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of rows with each distinct value [D]."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.distinct))

    @property
    def num_rows(self) -> int:
        return len(self.codes)

    @property
    def num_known(self) -> int:
        return int(self.counts.sum())

    @property
    def num_missing(self) -> int:
        return self.num_rows - self.num_known

    @property
    def is_number(self) -> bool:
        return bool(pa.types.is_integer(self.type) or pa.types.is_floating(self.type))

    @property
    def is_text(self) -> bool:
        return bool(pa.types.is_string(self.type))

    @cached_property
    def texts(self) -> list[str]:
        """The distinct values as text [D]; whole floats without a point."""
        values = self.distinct.to_pylist()
        is_float = pa.types.is_floating(self.type)
        return [str(int(value) if is_float and value.is_integer() else value) for value in values]

    @cached_property
    def distinct_numbers(self) -> np.ndarray:
        """The distinct values as float64 [D]. Only for numbers and booleans."""
        array = pc.cast(self.distinct, pa.int8()) if pa.types.is_boolean(self.type) else self.distinct
        return np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))

    @cached_property
    def numbers(self) -> np.ndarray:
        """The number in each row [N], NaN where it is missing."""
        numbers: np.ndarray = np.append(self.distinct_numbers, np.nan)[self.codes]
        return numbers

    @cached_property
    def is_whole(self) -> bool:
        """Whether all values are numbers without a fraction."""
        return self.is_number and bool((np.floor(self.distinct_numbers) == self.distinct_numbers).all())

    def take(self, rows: np.ndarray) -> "ColumnValues":
        """The same column with these rows only. Values that no longer occur stay in `distinct`."""
        return replace(self, codes=self.codes[rows])


def values_of(name: str, column: pa.ChunkedArray) -> ColumnValues:
    """Find the distinct values of a column.

    Decimals become float64. Lists and structs become text, and so do bytes if they are UTF-8 text.
    """
    column = _as_text(column)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    longest = 1
    if pa.types.is_dictionary(column.type):
        encoded = column.unify_dictionaries().combine_chunks()
    else:
        if pa.types.is_decimal(kind):
            kind = pa.float64()
            column = pc.cast(column, kind)
        elif pa.types.is_null(kind):
            return ColumnValues(name, kind, np.full(len(column), -1), pa.nulls(0))
        elif pa.types.is_nested(kind):
            if pa.types.is_list(kind) or pa.types.is_large_list(kind):
                longest = pc.max(pc.list_value_length(column)).as_py() or 0
            column = pa.chunked_array(
                [[None if value is None else str(value) for value in column.to_pylist()]]
            )
        encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], encoded.type)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    distinct = encoded.dictionary
    is_float, is_text = pa.types.is_floating(kind), pa.types.is_string(kind)
    if is_float or is_text or distinct.null_count:  # NaN and blank text in Parquet are missing values
        valid = pc.is_valid(distinct)
        if is_float:
            valid = pc.fill_null(pc.invert(pc.is_nan(distinct)), False)
        elif is_text:
            valid = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(distinct), ""), False)
        codes, distinct = _keep(codes, distinct, valid.to_numpy(zero_copy_only=False))
    used = np.bincount(codes[codes >= 0], minlength=len(distinct)) > 0
    if not used.all():  # a dictionary may hold values that no row has
        codes, distinct = _keep(codes, distinct, used)
    return ColumnValues(name, kind, codes, distinct, longest)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column, as text if it holds bytes that are UTF-8 text."""
    try:
        return column.cast(plain_type(column.type, keep_bytes=False))
    except pa.ArrowInvalid:
        return column


def _keep(codes: np.ndarray, distinct: pa.Array, kept: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    """Keep some of the distinct values; rows with another one become missing."""
    lookup = np.where(kept, np.cumsum(kept) - 1, -1)
    return np.append(lookup, -1)[codes], distinct.filter(pa.array(kept))


def sample_rows(num_rows: int, limit: int, known: np.ndarray | None = None) -> np.ndarray:
    """Sorted positions of at most `limit` random rows, of those that are `known` [N]."""
    rows = np.arange(num_rows) if known is None else np.flatnonzero(known)
    if len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
