"""The levels of one column of raw rows.

A column of a frame may have any dtype of pandas or Arrow.

N rows, V values in all rows of a multi-valued column.
"""

import datetime
import math
from decimal import Decimal
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.errors import UserError
from mmoe.raw.frame_column import array_of, kind_of


class Levels(NamedTuple):
    """The levels of a column.

    Shape:
        codes: [N], or [V] if the column is multi-valued; names[i] is the level of code i, and -1 is missing.
        row_offsets: [N + 1], the first value of each row; None if every row has one value.
    """

    codes: np.ndarray
    names: list[str]
    row_offsets: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """The row of each code [V]; only for a multi-valued column."""
        assert self.row_offsets is not None
        return np.repeat(np.arange(len(self.row_offsets) - 1), np.diff(self.row_offsets))


def levels_of(values: pd.Series) -> Levels:
    """The levels of a column with one value in each row.

    Text is stripped of blanks, and is missing if it is empty then. A whole number such as 4.0 is the level
    "4".

    Raises:
        UserError: a value is neither text, a number, a boolean nor a date.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, found = values.cat.codes.to_numpy(), values.cat.categories.tolist()
    elif isinstance(values.dtype, pd.ArrowDtype):
        return _levels_of_array(array_of(values), values.name)
    else:
        try:
            codes, uniques = pd.factorize(values)
        except TypeError:  # the values are lists, say
            raise UserError(
                f"column {values.name}: must hold text, holds {kind_of(values)} objects"
            ) from None
        found = list(uniques)
    return _named(codes, found, values.name)


def multi_levels_of(values: pd.Series, separator: str) -> Levels:
    """The levels of a multi-valued column: lists, or text with a separator.

    A row without a value has the single code -1, and a row with an empty list has no code. Missing and empty
    levels of a list, such as the second one of "a||b", do not count.

    Raises:
        UserError: a value is neither text nor a list of levels, or there is text and no `separator`.
    """
    if not isinstance(values.dtype, pd.ArrowDtype):
        plain = values.astype(object).where(values.notna(), None)
        try:
            array = pa.array(plain.map(lambda v: v if v is None or isinstance(v, str) else list(v)))
        except (TypeError, pa.ArrowException):
            raise UserError(f"column {values.name}: must hold text or lists of levels") from None
    else:
        array = array_of(values)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return Levels(np.full(len(array), -1), [], np.arange(len(array) + 1))
    if pa.types.is_fixed_size_list(array.type):
        array = pc.cast(array, pa.list_(array.type.value_type))
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        if not separator:
            rule = "needs a separator, because it holds no lists"
            raise UserError(f"column {values.name}: {rule}")
        text = pc.cast(array, pa.string())
        text = pc.utf8_trim_whitespace(text)
        array = pc.split_pattern(pc.if_else(pc.equal(text, ""), None, text), separator)
    is_missing = array.is_null().to_numpy(zero_copy_only=False)
    inner = _levels_of_array(array.flatten(), values.name)
    row = np.repeat(np.arange(len(array)), pc.fill_null(pc.list_value_length(array), 0))
    is_level = inner.codes >= 0
    counts = np.where(is_missing, 1, np.bincount(row[is_level], minlength=len(array)))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    codes = np.full(offsets[-1], -1, np.int64)
    codes[~np.repeat(is_missing, counts)] = inner.codes[is_level]
    return Levels(codes, inner.names, offsets)


def _levels_of_array(array: pa.Array, name: Any) -> Levels:
    if pa.types.is_null(array.type):
        return Levels(np.full(len(array), -1), [])
    if pa.types.is_nested(array.type):
        raise UserError(f"column {name}: must hold text, holds {str(array.type)[:80]}")
    if not pa.types.is_dictionary(array.type):
        if pa.types.is_decimal(array.type):  # Arrow cannot dictionary-encode decimal32 and decimal64
            array = pc.cast(array, pa.decimal256(76, array.type.scale))
        array = array.dictionary_encode()
    codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
    kind, found = array.dictionary.type, array.dictionary
    if (pa.types.is_integer(kind) or pa.types.is_string(kind)) and not found.null_count:
        names = pc.cast(found, pa.string()).to_pylist()
        # A dictionary from a file may repeat a value, or hold blanks.
        if len({*names, ""}) == len(names) + 1 and names == [name.strip() for name in names]:
            return Levels(codes, names)
    return _named(codes, found.to_pylist(), name)


def _named(codes: np.ndarray, found: list[Any], name: Any) -> Levels:
    """Name the levels. Two values may have the same name, such as 4 and 4.0."""
    names = [_level_name(value, name) for value in found]
    unique: dict[str, int] = {}
    lookup = [-1 if text is None else unique.setdefault(text, len(unique)) for text in names]
    if lookup == list(range(len(names))):
        return Levels(codes, [*unique])
    return Levels(np.append(lookup, -1)[codes], [*unique])


def _level_name(value: Any, column: Any) -> str | None:
    """The name of a level; None if the value is missing or blank."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        try:
            return value.decode().strip() or None
        except UnicodeDecodeError:
            raise UserError(f"column {column}: must be UTF-8 text, holds {value[:40]!r}") from None
    if isinstance(value, Integral | np.bool_ | datetime.date | datetime.time):
        return str(value)
    if isinstance(value, Decimal | float | np.floating):
        if math.isfinite(value) and value == int(value):
            return str(int(value))
        return str(value.normalize() if isinstance(value, Decimal) else value)
    raise UserError(f"column {column}: must hold text, holds {value!r}")
