"""One column of raw values, as levels or as numbers, whatever type a file gives it.

The same rules hold for CSV and Parquet. A whole number may be a level (4.0 is the level "4"), a truth value
is a level or the number 0 or 1, and text may hold a number.
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

from mmoe.data.headerless_csv import LARGEST
from mmoe.errors import UserError

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"-?[0-9]+\.0*")
TRUTH = {"true": 1.0, "false": 0.0}
# How the vocabulary of a run may spell false and true; the first is Python's spelling.
SPELLINGS = (("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("0", "1"))

# Where the row at an index is: the beginning of an error message.
Place = Callable[[int], str]


def find(names: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Positions among `names` of the `wanted` columns.

    A name must be the same, or the only one that differs in case and surrounding blanks alone.

    Raises:
        UserError: a column is missing, or there are several of its name; `where` begins the message.
    """
    asked = set(wanted)
    exact: dict[str, list[int]] = {}
    similar: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        exact.setdefault(name, []).append(position)
        if name not in asked:
            similar.setdefault(_folded(name), []).append(position)
    found = {name: exact.get(name) or similar.pop(_folded(name), []) for name in wanted}
    if missing := [name for name, positions in found.items() if not positions]:
        listed = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
        raise UserError(f"{where}: must have a column for every input of the run; lacks {listed}")
    for name, positions in found.items():
        if len(positions) > 1:
            what = " and ".join(repr(names[position]) for position in positions[:2])
            raise UserError(f"{where}: must have one column {name!r}; has {what}")
    return [positions[0] for positions in found.values()]


def count(names: Sequence[str], wanted: Sequence[str]) -> int:
    """How many of the `wanted` columns have their names, or similar ones, among `names`."""
    return len({_folded(name) for name in names} & {_folded(name) for name in wanted})


def check_type(kind: pa.DataType, where: str) -> None:
    """Raise UserError for a type that holds neither levels nor numbers, such as a list or a date."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_is_text(value) or _is_number(value) or pa.types.is_boolean(value) or pa.types.is_null(value)):
        raise UserError(f"{where}: must hold text or numbers, holds {str(kind)[:80]}")


def levels(array: pa.Array, known: Collection[str], place: Place, encoding: str = "utf-8") -> pd.Categorical:
    """Levels of an array of a type that `check_type` allows.

    Args:
        array: the column's values.
        known: the vocabulary of the run, which decides between spellings of one value ("4" and "4.0").
        place: where a row is.
        encoding: that of bytes.

    Raises:
        UserError: a value is missing, empty, not text of the encoding, or a number that is not whole.
    """
    codes, values = _coded(array, encoding)
    found = [_level(value, known) for value in values]
    rules = [rule for _, rule in found]
    _refuse(np.array([*map(bool, rules), True])[codes], codes, [*rules, "must not be empty"], place)
    unique = {level: i for i, level in enumerate(dict.fromkeys(level for level, _ in found))}
    positions = np.array([unique[level] for level, _ in found], np.int64)  # two values may be one level
    return pd.Categorical.from_codes(positions[codes], categories=pd.Index([*unique], dtype=object))


def numbers(array: pa.Array, place: Place, encoding: str = "utf-8") -> np.ndarray:
    """Numbers, float64 [rows], of an array of a type that `check_type` allows; arguments as of `levels`.

    Raises:
        UserError: a value is missing, not a number, or not finite in float32.
    """
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if _is_text(kind):
        codes, values = _coded(array, encoding)
        result: np.ndarray = np.array([*map(_number, values), math.nan])[codes]
    else:
        plain = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        result = pc.cast(plain, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    wrong = ~(np.abs(result) <= LARGEST)
    if wrong.any():
        row = int(wrong.argmax())
        value = _text(_python(array.slice(row, 1))[0], encoding)
        if value == "":
            raise UserError(f"{place(row)}: must not be empty")
        what = "missing" if value is None else repr(str(value)[:40])
        raise UserError(f"{place(row)}: must be a finite number, is {what}")
    return result


def _coded(array: pa.Array, encoding: str) -> tuple[np.ndarray, list[Any]]:
    """Positions [rows] in a list of the distinct values, -1 where a value is missing, and that list."""
    if pa.types.is_null(array.type):
        return np.full(len(array), -1), []
    if not pa.types.is_dictionary(array.type):
        if pa.types.is_decimal(array.type):  # the small ones have no dictionaries
            array = pc.cast(array, pa.decimal256(76, array.type.scale))
        array = array.dictionary_encode()
    values = [_text(value, encoding) for value in _python(array.dictionary)]
    codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), values


def _python(array: pa.Array) -> list[Any]:
    """Values as Python's; text as bytes, for a file may hold text that is not valid."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return list((pc.cast(array, pa.large_binary()) if _is_text(array.type) else array).to_pylist())


def _text(value: Any, encoding: str) -> Any:
    """Bytes as stripped text, if they are; anything else as it is."""
    try:
        return value.decode(encoding).strip(" \t") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _level(value: Any, known: Collection[str]) -> tuple[str, str]:
    """A value's level, and the rule that it breaks, or nothing."""
    if isinstance(value, str):
        text = value if value in known else value.strip()
        whole = text.partition(".")[0]
        if text not in known and whole in known and WHOLE.fullmatch(text):
            text = whole
        return text, "" if text else "must not be empty"
    if value is None or value != value:
        return "", "must not be empty"
    if isinstance(value, bytes):
        return "", f"must be UTF-8 text, is {value[:40]!r}"
    if isinstance(value, bool):
        spelling = next((pair for pair in SPELLINGS if set(pair) & set(known)), SPELLINGS[0])
        return spelling[value], ""
    if isinstance(value, Decimal) and value.is_finite():
        value = value.normalize()
    if str(value) in known:
        return str(value), ""
    if math.isfinite(value) and value == int(value):
        return str(int(value)), ""
    return "", f"must be text or a whole number, is {value}"


def _number(value: Any) -> float:
    """The number that a text is, NaN if none."""
    text = value.strip() if isinstance(value, str) else ""
    return float(text) if NUMBER.fullmatch(text) else TRUTH.get(text.lower(), math.nan)


def _refuse(wrong: np.ndarray, codes: np.ndarray, rules: Sequence[str], place: Place) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{place(row)}: {rules[codes[row]]}")


def _folded(name: str) -> str:
    return name.strip().casefold()


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
            pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
        )
    )  # fmt: skip


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
