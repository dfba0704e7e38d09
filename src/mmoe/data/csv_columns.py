"""Find out which columns of text hold numbers, and convert them.

Arrow guesses a column's type from the first block of a file. Here all rows of all files decide: a column is
text if any value is a word, or a code such as "007".
"""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mmoe.data.csv_options import CsvOptions
from mmoe.errors import RowError

BLANKS = " \t"


@dataclass(frozen=True)
class TextRules:
    """How CSV columns are converted: those in `text` stay text, those in `numbers` must hold numbers."""

    csv: CsvOptions
    text: Collection[str]
    numbers: Collection[str]


class ColumnType:
    """Finds the type of a column of text from all its values, block by block.

    The type is null if every value is missing, int64 or float64 if every value is a number, else text. An
    integer with a leading zero, or one that int64 cannot hold, makes the column text, because it is a code.
    """

    def __init__(self, options: CsvOptions) -> None:
        self._options = options
        self.type = pa.null()

    def add(self, column: pa.ChunkedArray) -> None:
        """Take more values of the column into account."""
        if self.type == pa.string() or column.null_count == len(column):
            return
        if self.type != pa.float64():
            try:
                convert_text(column, pa.int64(), self._options)
            except pa.ArrowInvalid:
                pass
            else:
                is_code = _has_leading_zero(_clean(column, self._options))
                self.type = pa.string() if is_code else pa.int64()
                return
        try:
            numbers = convert_text(column, pa.float64(), self._options)
        except pa.ArrowInvalid:
            self.type = pa.string()
            return
        if numbers.null_count == len(numbers):  # all of them are NaN, which int64 cannot hold
            self.type = pa.float64()
            return
        texts = _clean(column, self._options)
        integers = texts.filter(pc.invert(pc.match_substring_regex(texts, "[^0-9-]")))
        is_large = pc.any(pc.greater_equal(pc.abs(pc.cast(integers, pa.float64())), float(2**63))).as_py()
        self.type = pa.string() if is_large or _has_leading_zero(integers) else pa.float64()


def convert_column(
    column: pa.ChunkedArray, name: str, kind: pa.DataType, rules: TextRules
) -> pa.ChunkedArray:
    """Convert a column of text to the type that `ColumnType` found, or to numbers if it must hold numbers.

    If the CSV options have plain numbers, a column that must hold numbers but was found to be text stays
    text, so that all blocks of a file have one type. `encode` reads spellings such as TRUE as numbers, and
    finds the errors.

    Raises:
        RowError: a value is not a number.
    """
    if name in rules.numbers and kind == pa.string() and not rules.csv.has_plain_numbers:
        return to_numbers(column, name, rules.csv)
    return convert_text(column, kind, rules.csv)


def convert_text(column: pa.ChunkedArray, kind: pa.DataType, options: CsvOptions) -> pa.ChunkedArray:
    """Convert a column of text to the type that `ColumnType` found.

    Raises:
        pyarrow.ArrowInvalid: a value is not of that type.
    """
    if kind == pa.null():
        return pa.chunked_array([pa.nulls(len(column))])
    column = _clean(column, options)
    if kind == pa.string():
        return column
    if options.thousands:
        grouped = pc.match_substring(column, options.thousands)
        if pc.any(grouped).as_py():
            mark, point = ("[" + character + "]" for character in (options.thousands, options.decimal))
            pattern = f"^[+-]?[0-9]{{1,3}}({mark}[0-9]{{3}})+({point}[0-9]*)?$"
            if not pc.all(pc.match_substring_regex(column.filter(grouped), pattern)).as_py():
                raise pa.ArrowInvalid("digits are not in groups of three")
            column = pc.replace_substring(column, options.thousands, "")
    if options.decimal == ",":
        if pc.any(pc.match_substring(column, ".")).as_py():
            raise pa.ArrowInvalid("a point is not the decimal point")
        column = pc.replace_substring(column, ",", ".")
    column = pc.cast(column, kind)
    # A field that spells NaN is a missing number.
    return pc.if_else(pc.is_nan(column), None, column) if kind == pa.float64() else column


def to_numbers(column: pa.ChunkedArray, name: str, options: CsvOptions) -> pa.ChunkedArray:
    """Convert a column of text to numbers.

    Raises:
        RowError: a value is not a number.
    """
    column = _clean(column, options)
    try:
        return convert_text(column, pa.float64(), options)
    except pa.ArrowInvalid:
        pass  # the first wrong value is found below
    encoded = column.combine_chunks().dictionary_encode()
    for code, text in enumerate(encoded.dictionary):
        try:
            convert_text(pa.chunked_array([[text.as_py()]]), pa.float64(), options)
        except pa.ArrowInvalid:
            row = pc.index(encoded.indices, code).as_py()
            rule = f"must be a number with csv.decimal={options.decimal!r}, is {text.as_py()[:40]!r}"
            raise RowError(name, row, rule) from None
    raise AssertionError


def _clean(column: pa.ChunkedArray, options: CsvOptions) -> pa.ChunkedArray:
    """Remove blanks around the values. A value that is then a spelling of "missing" becomes null."""
    trimmed = pc.ascii_trim(column, BLANKS)
    if pc.sum(pc.binary_length(trimmed)).as_py() == pc.sum(pc.binary_length(column)).as_py():
        return column
    is_missing = pc.is_in(trimmed, pa.array(options.missing, pa.string()))
    return pc.if_else(is_missing, None, trimmed)


def _has_leading_zero(integers: pa.ChunkedArray) -> bool:
    """Whether any of these texts, which Arrow reads as integers, has a leading zero, such as 007 and 0x1F."""
    unsigned = pc.and_(pc.starts_with(integers, "0"), pc.greater(pc.binary_length(integers), 1))
    signed = pc.and_(pc.starts_with(integers, "-0"), pc.greater(pc.binary_length(integers), 2))
    return bool(pc.any(pc.or_(unsigned, signed)).as_py())
