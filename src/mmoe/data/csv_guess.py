"""Guess how a file of delimited text is written, from its first lines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmoe.data.csv_options import CsvOptions
from mmoe.data.csv_start import find_delimiter, first_rows, read_start
from mmoe.raw.numbers import DECIMAL_COMMA

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def guess_options(file: str, given: Mapping[str, Any]) -> CsvOptions:
    """The options of a file. A delimiter, header and decimal point that are not given, or None, are guessed.

    The first line is data if there are columns of numbers, and each of them begins with a number.

    Raises:
        UserError: the file cannot be read, or an option is wrong.
    """
    known = {key: value for key, value in given.items() if value is not None}
    header = known.get("header", False if "names" in known else None)
    options = CsvOptions.parse(known | {"header": False if header is None else header})
    text = read_start(file, options.encoding).text
    delimiter = options.delimiter or find_delimiter(file, text)
    rows = first_rows(text, delimiter)
    options = replace(options, delimiter=delimiter)
    if "decimal" not in known and delimiter != ",":
        fields = [field for row in rows[1:] for field in row]
        has_comma = any(DECIMAL_COMMA.fullmatch(field) for field in fields)
        has_point = any("." in field and NUMBER.fullmatch(field) for field in fields)
        options = replace(options, decimal="," if has_comma and not has_point else ".")
    return replace(options, header=_has_header(rows, options)) if header is None else options


def _has_header(rows: Sequence[Sequence[str]], options: CsvOptions) -> bool:
    if len(rows) < 2:
        return True
    # A first row with two equal fields holds values, or is a header that `CsvFile` refuses.
    if len(set(rows[0])) < len(rows[0]):
        return not any(is_number(field) or field in options.missing for field in rows[0])
    numeric = []
    for position, first in enumerate(rows[0]):
        values = [row[position] for row in rows[1:] if len(row) > position]
        present = [value for value in values if value not in options.missing]
        if present and all(map(is_number, present)):
            numeric.append(is_number(first))
    return not (numeric and all(numeric))


def is_number(field: str) -> bool:
    """Whether a field is a number. Its decimal point may be a comma."""
    return NUMBER.fullmatch(field.replace(",", ".", 1)) is not None
