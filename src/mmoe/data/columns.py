"""Convert a column of a file to levels or to numbers.

The same rules hold for text files and Parquet. A whole number can be a level (4.0 is the level "4"), a
boolean can be a level or the number 0 or 1, and text can hold a number.
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.data.schema_checks import MAX_FLOAT32
from mmoe.errors import UserError

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
WHOLE_NUMBER = re.compile(r"-?[0-9]+\.0*")
BOOLEANS = {"true": 1.0, "false": 0.0}
# How a run's vocabulary may spell false and true; Python's spelling comes first.
BOOLEAN_SPELLINGS = (("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("0", "1"))
TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
    pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
)  # fmt: skip
OTHER_TYPES = (
    pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null
)  # fmt: skip

# A function that returns the place of a row in its file, for an error message. Rows count from 0.
Locate = Callable[[int], str]


def find(names: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Positions of the `wanted` columns among `names`.

    A column is found by its exact name. If there is none, a name may differ in case and surrounding spaces.

    Raises:
        UserError: a column is missing, or several columns have its name. The message begins with `where`.
    """
    unique = set(wanted)
    exact: dict[str, list[int]] = {}
    similar: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        exact.setdefault(name, []).append(position)
        if name not in unique:
            similar.setdefault(_folded(name), []).append(position)
    found = {name: exact.get(name) or similar.pop(_folded(name), []) for name in wanted}
    if missing := [name for name, positions in found.items() if not positions]:
        listed = ", ".join(map(repr, missing[:5])) + f" and {len(missing) - 5} more" * (len(missing) > 5)
        raise UserError(f"{where}: must have a column for every input of the run; lacks {listed}")
    for name, positions in found.items():
        if len(positions) > 1:
            what = " and ".join(repr(names[position]) for position in positions[:2])
            raise UserError(f"{where}: must have one column {name!r}; has {what}")
    return [positions[0] for positions in found.values()]


def count_found(names: Sequence[str], wanted: Sequence[str]) -> int:
    """The number of `wanted` columns among `names`, ignoring case and surrounding spaces."""
    return len({_folded(name) for name in names} & {_folded(name) for name in wanted})


def check_type(kind: pa.DataType, where: str) -> None:
    """Raise UserError for a type that holds neither levels nor numbers, such as a list or a date."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not _is_any(value, *TEXT_TYPES, *OTHER_TYPES):
        raise UserError(f"{where}: must hold text or numbers, holds {str(kind)[:80]}")


def convert(
    array: pa.Array, vocabulary: Collection[str] | None, locate: Locate, encoding: str = "utf-8"
) -> pd.Categorical | np.ndarray:
    """Convert an array, of a type that `check_type` allows, to levels or to float64 numbers.

    Args:
        array: the values of the column.
        vocabulary: the levels that the run knows; they decide between spellings of a value ("4" and "4.0").
            None for a numeric column.
        locate: gives the place of a row.
        encoding: the encoding of bytes.

    Raises:
        UserError: a value is missing or empty, a level is neither valid text nor a whole number, or a number
            is not finite in float32.
    """
    if vocabulary is None:
        return to_numbers(array, locate, encoding)
    codes, values = _dictionary_encode(array, encoding)
    levels, errors = zip(*(_level(value, vocabulary) for value in (*values, None)), strict=True)
    # A missing value has the code -1, which picks the last entry. That entry belongs to the None added above.
    is_invalid = np.array([*map(bool, errors)])[codes]
    if is_invalid.any():
        row = int(is_invalid.argmax())
        raise UserError(f"{locate(row)}: {errors[codes[row]]}")
    unique = {level: i for i, level in enumerate(dict.fromkeys(levels[:-1]))}
    merged = np.array([unique[level] for level in levels[:-1]], np.int64)  # two values may be the same level
    return pd.Categorical.from_codes(merged[codes], categories=pd.Index([*unique], dtype=object))


def to_numbers(array: pa.Array, locate: Locate, encoding: str = "utf-8") -> np.ndarray:
    """Convert the array of a numeric column; see `convert`."""
    is_dictionary = pa.types.is_dictionary(array.type)
    if _is_any(array.type.value_type if is_dictionary else array.type, *TEXT_TYPES):
        codes, values = _dictionary_encode(array, encoding)
        result: np.ndarray = np.array([*map(_number, values), math.nan])[codes]
    else:
        plain = array.dictionary_decode() if is_dictionary else array
        if pa.types.is_decimal(plain.type):  # Arrow rounds 637.000000000 to 637.0000000000001
            plain = pc.cast(plain, pa.string())
        result = pc.cast(plain, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    is_invalid = ~(np.abs(result) <= MAX_FLOAT32)
    if is_invalid.any():
        row = int(is_invalid.argmax())
        value = _text(_to_python(array.slice(row, 1))[0], encoding)
        if value == "":
            raise UserError(f"{locate(row)}: must not be empty")
        what = "missing" if value is None else repr(str(value)[:40])
        raise UserError(f"{locate(row)}: must be a finite number, is {what}")
    return result


def _dictionary_encode(array: pa.Array, encoding: str) -> tuple[np.ndarray, list[Any]]:
    """A code for each row, -1 if its value is missing, and the distinct values."""
    if pa.types.is_null(array.type):
        return np.full(len(array), -1), []
    if not pa.types.is_dictionary(array.type):
        if pa.types.is_decimal(array.type):  # Arrow cannot dictionary-encode decimal32 and decimal64
            array = pc.cast(array, pa.decimal256(76, array.type.scale))
        array = array.dictionary_encode()
    values = [_text(value, encoding) for value in _to_python(array.dictionary)]
    codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), values


def _to_python(array: pa.Array) -> list[Any]:
    """The values as Python objects. Text stays bytes, because a file may hold invalid text."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if _is_any(array.type, *TEXT_TYPES):
        array = pc.cast(array, pa.large_binary())
    return list(array.to_pylist())


def _text(value: Any, encoding: str) -> Any:
    """Decode and strip bytes. Invalid bytes, and values of other types, are returned unchanged."""
    try:
        return value.decode(encoding).strip(" \t") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _level(value: Any, vocabulary: Collection[str]) -> tuple[str, str]:
    """Return (level, "") for a valid value, and ("", error) for an invalid one."""
    if isinstance(value, str):
        text = value if value in vocabulary else value.strip()
        whole = text.partition(".")[0]
        if text not in vocabulary and whole in vocabulary and WHOLE_NUMBER.fullmatch(text):
            text = whole
        return text, "" if text else "must not be empty"
    if value is None or value != value:
        return "", "must not be empty"
    if isinstance(value, bytes):
        return "", f"must be UTF-8 text, is {value[:40]!r}"
    if isinstance(value, bool):
        known = (pair for pair in BOOLEAN_SPELLINGS if set(pair) & set(vocabulary))
        return next(known, BOOLEAN_SPELLINGS[0])[value], ""
    if isinstance(value, Decimal) and value.is_finite():
        value = value.normalize()
    if str(value) in vocabulary:
        return str(value), ""
    if math.isfinite(value) and value == int(value):
        return str(int(value)), ""
    return "", f"must be text or a whole number, is {value}"


def _number(value: Any) -> float:
    """The number that a text holds, or NaN."""
    text = value.strip() if isinstance(value, str) else ""
    return float(text) if NUMBER.fullmatch(text) else BOOLEANS.get(text.lower(), math.nan)


def _folded(name: str) -> str:
    return name.strip().casefold()


def _is_any(kind: pa.DataType, *checks: Callable[[pa.DataType], bool]) -> bool:
    return any(check(kind) for check in checks)
