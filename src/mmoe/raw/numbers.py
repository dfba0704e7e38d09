"""The numbers of one column of raw rows.

A column of a frame may have any dtype of pandas or Arrow. Errors count rows from 0.

N rows.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.checks.fields import MAX_FLOAT32
from mmoe.errors import RowError, UserError
from mmoe.raw.frame_column import NUMBERS, array_of, is_number_type, kind_of

BOOLEANS = {"false": 0.0, "true": 1.0}
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


def numbers_of(values: pd.Series) -> np.ndarray:
    """The numbers of a column [N], finite in float32 or NaN where missing. Text may hold numbers.

    Raises:
        UserError: a value is not a number, is infinite, or is too large for float32.
    """
    if isinstance(values.dtype, pd.ArrowDtype):
        numbers = _numbers_of_array(array_of(values), values.name)
    else:
        is_text = isinstance(values.dtype, pd.StringDtype) or kind_of(values) == "string"
        if is_text:
            numbers = _numbers_of_array(pa.array(values, from_pandas=True), values.name)
        elif isinstance(values.dtype, pd.CategoricalDtype) or kind_of(values) not in NUMBERS:
            raise _not_numbers(values)
        else:
            numbers = values.to_numpy()
            if numbers.dtype.kind not in "iuf":
                numbers = values.to_numpy(np.float64, na_value=np.nan)
    check_finite_column(str(values.name), numbers)
    return numbers


def _not_numbers(values: pd.Series) -> UserError:
    """The error for a column that does not hold numbers."""
    for row, value in enumerate(values.astype(object)):
        if isinstance(value, str | bytes):
            return RowError(str(values.name), row, number_rule(value))
    return UserError(f"column {values.name}: must hold numbers, holds {kind_of(values)} values")


def number_rule(value: str | bytes) -> str:
    """The rule that text breaks if it is no number."""
    has_comma = isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip())
    hint = "; csv.decimal=',' reads a decimal comma" if has_comma else ""
    return f"must be a number, is {value[:40]!r}{hint}"


def check_finite_column(name: str, values: np.ndarray) -> None:
    """Raise UserError for the first number [N] that is neither finite in float32 nor NaN."""
    magnitudes = np.abs(values.astype(np.float64, copy=False))  # float16 cannot hold the limit
    wrong = ~(magnitudes <= MAX_FLOAT32) & ~np.isnan(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        rule = "must be a finite number in the range of float32"
        raise RowError(name, row, f"{rule}, is {values[row]}")


def _numbers_of_array(array: pa.Array, name: Any) -> np.ndarray:
    """The numbers of an array, NaN if missing; in float32 for floats of up to 32 bits, else in float64."""
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
    elif pa.types.is_decimal(array.type):  # a direct cast gives 637.0000000000001 for 637.000000000
        array = pc.cast(array, pa.string())
    if not pa.types.is_floating(array.type):
        try:
            array = pc.cast(array, pa.float64(), safe=False)
        except pa.ArrowInvalid:
            array = _numbers_of_spellings(array, name)
    numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
    return numbers


def _numbers_of_spellings(texts: pa.Array, name: Any) -> pa.Array:
    """The numbers that texts spell. Spellings of booleans become 0 and 1."""
    encoded = texts.dictionary_encode()
    numbers = [_number(text) for text in encoded.dictionary.to_pylist()]
    wrong = np.array([number is None for number in numbers] + [False])
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    if wrong[codes].any():
        row = int(wrong[codes].argmax())
        raise RowError(str(name), row, number_rule(texts[row].as_py()))
    return pa.array(numbers, pa.float64()).take(encoded.indices)


def _number(text: str) -> float | None:
    if text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    try:
        number: float = pc.cast(pa.scalar(text), pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None
    return number
