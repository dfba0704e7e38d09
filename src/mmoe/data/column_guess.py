"""Guess what kind of input a column is.

A guess looks at the values first, and then at the words in the column's name. The type is not enough:
integers may be codes or row numbers, and text may hold dates, or several levels in a field.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.data.column_names import suggests_codes, suggests_numbers, suggests_times, suggests_weights
from mmoe.data.column_options import ColumnOptions
from mmoe.data.column_values import NOT_TEXT, ColumnValues
from mmoe.data.date_spellings import (
    MAX_DATES,
    are_compact_dates,
    are_dates,
    describe_dates,
    odd_dates,
)
from mmoe.data.number_spellings import (
    find_marks,
    odd_spellings,
    remark_on_marks,
    remark_on_spellings,
    remark_on_unit,
)
from mmoe.raw.dates import AMBIGUOUS, DAY_FIRST, DateFormat, dates_of, find_order, guess_format

MAX_CODES = 20  # integers with at most this many distinct values are codes
FEW_CODES = 5  # the limit if the name suggests numbers; otherwise, columns above it get a remark
MIN_ROWS_PER_CODE = 5  # integers with fewer rows for each distinct value are numbers
MANY_LEVELS = 1_000_000  # more levels are hashed
TEXT_ID_SHARE = 0.9  # text with more levels than this share of the rows identifies the row
SEPARATORS = ("|", ";", ",")
MAX_VOCABULARY = 10_000  # the largest number of distinct parts in a column of lists
MANY_PARTS = 5  # fields with more parts on average are lists even if the vocabulary is large
UNIX_TIMES = ((1e8, 4e9), (1e11, 4e12), (1e14, 4e15), (1e17, 4e18))  # 1973 to 2096, in s, ms, us and ns


@dataclass
class Guess:
    """What is known about a column.

    Attributes:
        kind: `numeric`, `categorical`, `multi` or `datetime`.
        options: the other options of the column; see `ColumnOptions`.
        reason: why the column is left out; empty if it is an input.
        summary: the number of levels, or the range of the numbers or dates, as text.
        remarks: what the user should know.
    """

    values: ColumnValues
    kind: str = "categorical"
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    summary: str = ""
    remarks: list[str] = field(default_factory=list)

    def to_plain(self) -> Any:
        """The entry below `columns`: a kind, or a mapping with options."""
        return {"kind": self.kind} | self.options if self.options else self.kind


def guess(values: ColumnValues, is_csv: bool = False) -> Guess:
    """Guess the kind of a column. For one of a CSV file, remarks may advise other CSV options."""
    found = Guess(values)
    kind, num_levels = values.type, len(values.distinct)
    if not values.num_known:
        found.reason = "empty"
    elif num_levels == 1 and not values.num_missing:
        found.reason = "constant"
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type):
        found.kind = "multi"
        _set_max_values(found, values.longest)
    elif pa.types.is_nested(kind):
        found.reason = f"holds {kind}"[:40]
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        found.kind = "datetime"
    elif pa.types.is_binary(kind):
        found.reason = f"holds {NOT_TEXT}"
    elif pa.types.is_time(kind) or pa.types.is_duration(kind):
        found.reason = f"holds {kind}, which is neither a number nor a date"
    elif values.is_text:
        _guess_text(found, is_csv)
    elif values.is_number:
        _guess_number(found, is_csv)
    if found.kind == "categorical" and not found.reason and num_levels > MANY_LEVELS:
        found.options = {"encoding": "hash", "buckets": 100_000, "size": 16}
    found.summary = found.summary or _summary(found)
    return found


def _guess_text(found: Guess, is_csv: bool) -> None:
    values = found.values
    num_levels, texts = len(values.distinct), values.texts
    if are_dates(texts):
        found.kind = "datetime"
        order = find_order(texts)
        dates = dates_of(pd.Series(texts[:MAX_DATES]), DateFormat(day_first=order == DAY_FIRST))
        found.summary = describe_dates(dates)
        if order == DAY_FIRST:
            found.options = {"day_first": True}
            found.remarks.append("the day stands before the month")
        elif order == AMBIGUOUS:
            found.remarks.append("read with the month first; set day_first: true if the day is first")
        return
    others = odd_spellings(values)
    if not others and (separator := _find_separator(values)):
        found.kind, found.options = "multi", {"separator": separator}
        found.summary = f"{len(_parts(texts, separator)):,} levels"
        _set_max_values(found, max(text.count(separator) for text in texts) + 1)
        return
    non_dates = odd_dates(values)
    if num_levels >= 20 and num_levels == values.num_rows:
        found.reason = "a level for each row"
    elif num_levels >= 100 and num_levels > TEXT_ID_SHARE * values.num_known:
        found.reason = "nearly a level for each row"
    if num_levels > 2 and {text.lower() for text in texts} <= {"false", "true"}:
        found.remarks.append("true and false in several spellings, each of which is a level")
    if marks := find_marks(texts):
        _add_hint(found, remark_on_marks(marks, is_csv))
    elif unit := remark_on_unit(texts):
        _add_hint(found, unit)
    if non_dates:
        advice = "add to csv.missing" if is_csv else "replace by None"
        _add_hint(found, f"dates and {', '.join(map(repr, non_dates))}: {advice} for a column of dates")
    if others:
        _add_hint(found, remark_on_spellings(others, is_csv))
    elif others == []:
        found.remarks.append("numbers as text, such as codes with a leading zero")


def _add_hint(found: Guess, hint: str) -> None:
    """Add a remark that also stands behind the reason if the column is left out."""
    found.remarks.append(hint)
    found.reason += f"; {hint}" if found.reason else ""


def _set_max_values(found: Guess, longest: int) -> None:
    if longest > ColumnOptions.max_values:
        found.options |= {"max_values": longest}


def _parts(texts: list[str], separator: str) -> Counter[str]:
    return Counter(part.strip() for text in texts for part in text.split(separator))


def _find_separator(values: ColumnValues) -> str | None:
    """A separator that splits many fields into levels of a small common vocabulary."""
    texts = values.texts
    if len(texts) < 4:
        return None
    for separator in SEPARATORS:
        has = np.array([separator in text for text in texts])
        if values.counts[has].sum() < 0.1 * values.num_known:
            continue
        parts = _parts(texts, separator)
        is_number = separator == "," and all(re.fullmatch(r"[+-]?[0-9.]+", part) for part in parts)
        is_repeated = parts.total() >= 3 * len(parts)
        is_small = len(parts) <= min(MAX_VOCABULARY, 0.5 * len(texts))
        is_list = is_repeated and (is_small or parts.total() >= MANY_PARTS * len(texts))
        if is_list and "" not in parts and not is_number:
            return separator
    return None


def _guess_number(found: Guess, is_csv: bool) -> None:
    values = found.values
    numbers, name = values.distinct_numbers, values.name
    num_levels, low, high = len(numbers), float(numbers.min()), float(numbers.max())
    found.kind = "numeric"
    if not np.isfinite(numbers).all():
        found.remarks.append("holds infinite numbers, which cannot be encoded")
    # A float column holds measures. With missing values it may hold codes, which pandas then makes floats.
    is_code_like = values.is_whole and (pa.types.is_integer(values.type) or values.num_missing > 0)
    if is_code_like and num_levels == values.num_rows >= 10 and high - low == num_levels - 1:
        found.reason = "row numbers"
        return
    if is_code_like and suggests_times(name):
        if any(least <= low and high <= most for least, most in UNIX_TIMES):
            found.kind = "datetime"
            limits = pd.Series([low, high])
            found.summary = describe_dates(dates_of(limits, guess_format(limits)))
            found.remarks.append("numbers that are read as Unix times")
            return
        if are_compact_dates(numbers):
            found.remarks.append("looks like dates written as YYYYMMDD, which are used as plain numbers")
            return
    limit = FEW_CODES if suggests_numbers(name) else MAX_CODES
    is_enough = num_levels == 2 or values.num_known >= MIN_ROWS_PER_CODE * num_levels
    if is_code_like and suggests_codes(name):
        found.kind = "categorical"
        if num_levels == values.num_rows >= 20:
            found.reason = "an id for each row"
    elif is_code_like and num_levels <= limit and is_enough:
        found.kind = "categorical"
        if num_levels > FEW_CODES:
            found.remarks.append("small integers, taken as codes")
    if low == -1 and is_code_like and num_levels > 2 and (numbers >= 0).sum() == num_levels - 1:
        advice = '; then set csv.missing=["","?",NA,-1]' if is_csv else ""
        found.remarks.append(f"-1 may mean unknown{advice}")
    if suggests_weights(name) and low >= 0:
        found.remarks.append("the weight of a row? then set weight, and remove this column")
    # Large numbers are stored as differences from the smallest one.
    if high - low > 2**24 and found.kind == "numeric" and values.is_whole:
        found.remarks.append("integers more than 2^24 apart are rounded to float32")


def _summary(found: Guess) -> str:
    values = found.values
    if found.kind == "multi":
        return f"lists of at most {values.longest}"
    if not len(values.distinct):
        return "-"
    if found.kind == "numeric":
        return f"{values.distinct_numbers.min():g} to {values.distinct_numbers.max():g}"
    if found.kind == "datetime":
        texts = sorted(values.texts)
        return f"{texts[0][:10]} to {texts[-1][:10]}"
    count = len(values.distinct)
    return f"{count:,} level" + "s" * (count > 1)
