"""Which texts of a column are numbers, and which options or spellings would make it a column of numbers."""

import re
from collections.abc import Sequence

import numpy as np

from mmoe.data.column_values import ColumnValues

# The decimal point and the thousands separator: all pairs of them, and the decimal comma alone.
MARKS = (*((point, mark) for mark in ",.' _" for point in ".," if point != mark), (",", ""))
# A number that may have a decimal comma, and thousands separators
NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+|[0-9]{1,3}([.,' _][0-9]{3})+([.,][0-9]+)?)")
# A currency may stand before the number: a sign, or three capital letters and a space. A unit after it has at
# most 10 characters, and begins with a letter, %, ° or a currency sign. A1 does not match.
NUMBER_WITH_UNIT = re.compile(
    r"[+-]?(?P<before>[$€£¥₹]|[A-Z]{3}(?= )|) *"
    r"[+-]?[0-9][0-9.,' _]*(?P<after>([^\W\d_]|[%°$€£¥₹])[^0-9]{0,9}|)"
)


def find_marks(texts: list[str]) -> str:
    """The CSV options with which all texts are numbers, some with a decimal comma or a thousands separator.

    Empty if there are none.
    """
    for decimal, thousands in MARKS:
        digits = rf"[0-9]{{1,3}}({re.escape(thousands)}[0-9]{{3}})*" if thousands else "[0-9]+"
        number = re.compile(rf"[+-]?{digits}({re.escape(decimal)}[0-9]+)?")
        mark = thousands or decimal
        if any(mark in text for text in texts) and all(map(number.fullmatch, texts)):
            return f"decimal: {decimal!r}" + (f" and thousands: {thousands!r}" if thousands else "")
    return ""


def remark_on_unit(texts: list[str]) -> str:
    """A remark if all texts are numbers with the same unit, as in "$ 5" or "5 km"; else empty."""
    units = set()
    for text in texts:
        found = NUMBER_WITH_UNIT.fullmatch(text.strip())
        units.add((found["before"] + found["after"]).strip() if found else "")
        if len(units) > 1 or "" in units:
            return ""
    return f"numbers with {units.pop()!r}; remove it from the file for a column of numbers"


def odd_spellings(values: ColumnValues) -> list[str] | None:
    """The texts that are not numbers.

    None if there are more than 3 of them, or if less than 90 % of the known values are numbers.
    A number may have a decimal comma.
    """
    is_number = np.array([NUMBER.fullmatch(text) is not None for text in values.texts])
    others = [text for text, is_one in zip(values.texts, is_number, strict=True) if not is_one]
    if not others and any("," in text for text in values.texts):
        return None  # see `find_marks`
    are_most_numbers = values.counts[is_number].sum() >= 0.9 * values.num_known
    return others if are_most_numbers and (not others or (len(others) <= 3 < is_number.sum())) else None


def remark_on_marks(marks: str, is_csv: bool) -> str:
    """A remark on numbers that are read as text because of the marks that `find_marks` found."""
    return f"numbers if csv has {marks}" if is_csv else f"numbers as text, with {marks}"


def remark_on_spellings(others: Sequence[str], is_csv: bool) -> str:
    """A remark on numbers that are read as text because of a few other values."""
    listed = ", ".join(map(repr, others))
    advice = (
        "add to csv.missing for a numeric column" if is_csv else "replace by None and set the kind numeric"
    )
    return f"numbers and {listed}: {advice}"
