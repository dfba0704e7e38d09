"""The values of one column of raw rows, as levels or numbers.

A column of a frame may have any dtype of pandas or Arrow. Errors count rows from 0.

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

from mmoe.data.schema_checks import MAX_FLOAT32
from mmoe.errors import RowError, UserError

# The results of pandas.api.types.infer_dtype for columns of numbers.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")
BOOLEANS = {"false": 0.0, "true": 1.0}


class Levels(NamedTuple):
    """The levels of a column.

    Shape:
        codes: [N], or [V] if the column is multi-valued; -1 where the value is missing. names[i] is the level
        of code i. row_offsets: [N + 1], the first value of each row; None if every row has one value.
    """

    codes: np.ndarray
    names: list[str]
    row_offsets: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """The row of each code, of a multi-valued column [V]."""
        assert self.row_offsets is not None
        return np.repeat(np.arange(len(self.row_offsets) - 1), np.diff(self.row_offsets))


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """The one column of this name.

    Raises:
        UserError: there is none, or more than one.
    """
    count = int((frame.columns == name).sum())
    if not count:
        names = [str(other) for other in frame.columns]
        listed = ", ".join(names[:50]) + ", ..." * (len(names) > 50)
        raise UserError(f"column {name} is missing; the columns are {listed}")
    if count > 1:
        raise UserError(f"column {name} occurs {count} times")
    return frame[name]


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

    A missing row has the single code -1, and an empty list has no value. Missing and empty levels of a list,
    such as the second one of "a||b", do not count.
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


def numbers_of(values: pd.Series) -> np.ndarray:
    """The numbers of a column [N], finite in float32 or NaN where missing. Text may hold numbers.

    Raises:
        UserError: a value is not a number, is infinite or too large for float32.
    """
    if isinstance(values.dtype, pd.ArrowDtype):
        numbers = _numbers_of_array(array_of(values), values.name)
    else:
        is_text = isinstance(values.dtype, pd.StringDtype) or kind_of(values) == "string"
        if is_text:
            numbers = _numbers_of_array(pa.array(values, from_pandas=True), values.name)
        elif isinstance(values.dtype, pd.CategoricalDtype) or kind_of(values) not in NUMBERS:
            raise _not_a_number(values)
        else:
            numbers = values.to_numpy()
            if numbers.dtype.kind not in "iuf":
                numbers = values.to_numpy(np.float64, na_value=np.nan)
    check_finite_column(str(values.name), numbers)
    return numbers


def _not_a_number(values: pd.Series) -> UserError:
    """The error for a column that holds something else than numbers."""
    for row, value in enumerate(values.astype(object)):
        if isinstance(value, str | bytes):
            return RowError(str(values.name), row, f"must be a number, is {value[:40]!r}")
    return UserError(f"column {values.name}: must hold numbers, holds {kind_of(values)} values")


def check_finite_column(name: str, values: np.ndarray) -> None:
    """Raise UserError for the first number [N] that is neither finite in float32 nor NaN."""
    magnitudes = np.abs(values.astype(np.float64, copy=False))  # float16 cannot hold the limit
    wrong = ~(magnitudes <= MAX_FLOAT32) & ~np.isnan(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        rule = "must be a finite number in the range of float32"
        raise RowError(name, row, f"{rule}, is {values[row]}")


def kind_of(values: pd.Series) -> str:
    """The kind of values in a column, in pandas's words, ignoring missing values."""
    return pd.api.types.infer_dtype(values, skipna=True)


def is_categorical(values: pd.Series) -> bool:
    """Whether the column has a categorical or text dtype, or holds anything but numbers."""
    if isinstance(values.dtype, pd.ArrowDtype):
        kind = values.dtype.pyarrow_dtype
        return not (is_number_type(kind) or pa.types.is_null(kind))
    return isinstance(values.dtype, pd.CategoricalDtype | pd.StringDtype) or kind_of(values) not in NUMBERS


def is_number_type(kind: pa.DataType) -> bool:
    """Whether a type is one of numbers or booleans."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def array_of(values: pd.Series) -> pa.Array:
    """The Arrow array of a column with an Arrow dtype."""
    array = pa.array(values)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


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


def _numbers_of_array(array: pa.Array, name: Any) -> np.ndarray:
    """The numbers of an array, NaN where missing: floats keep their type, all others become float64."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        array = pc.if_else(pc.equal(array, ""), None, array)
    elif not is_number_type(array.type):
        raise UserError(f"column {name}: must hold numbers, holds {str(array.type)[:80]}")
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    elif pa.types.is_float16(array.type):
        array = pc.cast(array, pa.float32())
    elif pa.types.is_decimal(array.type):  # as a number, Arrow rounds 637.000000000 to 637.0000000000001
        array = pc.cast(array, pa.string())
    if not pa.types.is_floating(array.type):
        try:
            array = pc.cast(array, pa.float64(), safe=False)
        except pa.ArrowInvalid:
            array = _numbers_of_spellings(array, name)
    numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
    return numbers


def _numbers_of_spellings(texts: pa.Array, name: Any) -> pa.Array:
    """The numbers that texts spell, of which some may be booleans."""
    encoded = texts.dictionary_encode()
    numbers = [_number(text) for text in encoded.dictionary.to_pylist()]
    wrong = np.array([number is None for number in numbers] + [False])
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    if wrong[codes].any():
        row = int(wrong[codes].argmax())
        raise RowError(str(name), row, f"must be a number, is {texts[row].as_py()[:40]!r}")
    return pa.array(numbers, pa.float64()).take(encoded.indices)


def _number(text: str) -> float | None:
    if text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    try:
        number: float = pc.cast(pa.scalar(text), pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None
    return number
