"""The dates in a column of raw rows, and how they are written.

A column of a frame may have any dtype of pandas or Arrow. Errors count rows from 0.

N rows.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.errors import RowError, UserError
from mmoe.raw.frame_column import array_of, kind_of
from mmoe.raw.levels import Levels, levels_of
from mmoe.raw.numbers import numbers_of

DAY = 86400.0  # seconds
UNITS = ("s", "ms", "us", "ns")  # of Unix times
NUMERIC_DATE = re.compile(r"\s*(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})(?!\d)")
DAY_FIRST, MONTH_FIRST, AMBIGUOUS = "day first", "month first", "ambiguous"
MAX_SECONDS = 1e11  # the largest Unix time, in the year 5138


class DateFormat(NamedTuple):
    """How a column of dates is written.

    Attributes:
        unit: of Unix times, one of `UNITS`; empty if the training rows had no Unix times.
        day_first: 1/2/2025 is the first of February.
    """

    unit: str = ""
    day_first: bool = False


def guess_format(values: pd.Series, day_first: bool | None = None) -> DateFormat:
    """The format of the dates in training rows.

    The largest Unix time gives the unit. If `day_first` is None, the order that `find_order` finds is used.

    Raises:
        UserError: the values are numbers, and all look like dates without separators: 20250131 or 31012025.
    """
    values = _plain(values)
    if not _holds_unix_times(values):
        if day_first is None:
            is_text = not isinstance(values.dtype, pd.ArrowDtype) and kind_of(values) == "string"
            day_first = is_text and find_order(values.dropna().unique()) == DAY_FIRST
        return DateFormat(day_first=day_first)
    numbers = numbers_of(values).astype(np.float64)
    _check_unix_times(numbers[np.isfinite(numbers)], str(values.name))
    largest = np.nanmax(np.abs(numbers), initial=0.0)
    limits = MAX_SECONDS * 1000.0 ** np.arange(len(UNITS) - 1)
    return DateFormat(UNITS[int(np.searchsorted(limits, largest))])


def find_order(texts: Iterable[str]) -> str:
    """How dates such as 1/2/2025 and 01.02.25 are written: `DAY_FIRST`, `MONTH_FIRST`, or `AMBIGUOUS`.

    A number above 12 is a day. The order is ambiguous if there is none, or if days stand in both places. The
    result is empty if there are no such dates.
    """
    found = [(int(match[1]), int(match[2])) for match in map(NUMERIC_DATE.match, texts) if match]
    if not found:
        return ""
    first, second = (max(numbers) > 12 for numbers in zip(*found, strict=True))
    return AMBIGUOUS if first == second else DAY_FIRST if first else MONTH_FIRST


def dates_of(values: pd.Series, how: DateFormat) -> np.ndarray:
    """The dates of a column, datetime64[s] [N], NaT where missing.

    Text is parsed by pandas, and a time zone is converted to UTC. A date that is impossible in the order
    of the format, such as 31/12/2025 with the month first, has the other order. Numbers are Unix times;
    so are numbers in text, if the format has a unit.

    Raises:
        UserError: a value is not a date.
    """
    values = _plain(values).reset_index(drop=True)  # the index of a user's frame may repeat
    if isinstance(values.dtype, pd.ArrowDtype):  # dates or timestamps
        seconds = pc.cast(array_of(values), pa.timestamp("s"), safe=False)
        return np.asarray(seconds.to_numpy(zero_copy_only=False))
    if _holds_unix_times(values):
        return _dates_of_unix_times(values, how)
    if how.unit and kind_of(values) == "string":
        try:
            return _dates_of_unix_times(pd.Series(numbers_of(values), name=values.name), how)
        except UserError:
            pass  # the text holds dates
    parsed = pd.to_datetime(values, errors="coerce", format="mixed", utc=True)
    if how.day_first:
        # With dayfirst=True, pandas would read 2025-01-02 as the first of February.
        chosen = np.array([isinstance(one, str) and bool(NUMERIC_DATE.match(one)) for one in values], bool)
        others = pd.to_datetime(values[chosen], errors="coerce", format="mixed", utc=True, dayfirst=True)
        parsed = parsed.mask(chosen, others)
    for row in np.flatnonzero(parsed.isna() & values.notna()):
        value = values.iloc[row]
        if not (isinstance(value, str) and not value.strip()):  # blank text is missing
            raise _not_a_date(values, int(row))
    return parsed.dt.tz_localize(None).to_numpy("datetime64[s]")


def days(dates: np.ndarray) -> np.ndarray:
    """Days since 1970 [N], NaN where the date is missing."""
    seconds = dates.astype("datetime64[s]").astype(np.int64)
    return np.where(np.isnat(dates), np.nan, seconds / DAY)


def date_part(dates: np.ndarray, part: str) -> Levels:
    """The year, the month (1 to 12), the weekday (0 is Monday) or the hour of dates, as levels."""
    parts = getattr(pd.Series(dates).dt, part)
    return levels_of(parts.astype("Int64").rename(part))


def _plain(values: pd.Series) -> pd.Series:
    """The column with a dtype of pandas, unless Arrow holds dates or timestamps."""
    if not isinstance(values.dtype, pd.ArrowDtype):
        return values
    array: Any = array_of(values)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return pd.Series(array, dtype=pd.ArrowDtype(array.type), name=values.name)
    return pd.Series(array.to_pandas(), name=values.name)


def _holds_unix_times(values: pd.Series) -> bool:
    """Whether a column from `_plain` holds numbers."""
    if isinstance(values.dtype, pd.ArrowDtype):
        return False
    if values.dtype == object:
        return kind_of(values) in ("integer", "floating", "mixed-integer-float")
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _check_unix_times(numbers: np.ndarray, column: str) -> None:
    """Stop if all numbers look like dates without separators. As Unix times, they would be days of 1970."""
    is_whole = len(numbers) > 0 and bool((numbers == np.floor(numbers)).all())
    if not is_whole or numbers.min() < 1_01_1000 or numbers.max() > 9999_12_31:
        return
    texts = pd.Series(np.unique(numbers).astype(np.int64).astype(str)).str.zfill(8)
    for written in ("%Y%m%d", "%d%m%Y", "%m%d%Y"):
        if pd.to_datetime(texts, format=written, errors="coerce").notna().all():
            rule = "look like dates without separators, and numbers are read as Unix times"
            advice = "Write them as 2025-01-31, or use the column as numbers"
            raise UserError(f"column {column}: numbers such as {numbers[0]:.0f} {rule}. {advice}")


def _dates_of_unix_times(values: pd.Series, how: DateFormat) -> np.ndarray:
    numbers = numbers_of(values).astype(np.float64)
    seconds = numbers / 1000.0 ** UNITS.index(how.unit or "s")
    wrong = np.isfinite(numbers)  # without a unit, no number is a date
    if how.unit:
        wrong &= np.abs(seconds) > MAX_SECONDS
    if wrong.any():
        raise _not_a_date(values, int(wrong.argmax()), how.unit)
    whole = np.floor(np.round(seconds, 9))  # pandas rounds to nanoseconds too; then the fraction is dropped
    found = np.nan_to_num(whole).astype("datetime64[s]")
    return np.where(np.isnan(whole), np.datetime64("NaT"), found)


def _not_a_date(values: pd.Series, row: int, unit: str = "") -> RowError:
    other = f"a Unix time in {unit} as in the training rows" if unit else "missing"
    return RowError(str(values.name), row, f"must be a date, or {other}, is {str(values.iloc[row])[:40]!r}")
