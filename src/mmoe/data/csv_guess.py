"""Guess how a file of delimited text is written, from its first lines."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmoe.data.csv_file import HEADER_BYTES, decoded_stream
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import reading

DELIMITERS = (",", "\t", ";", "|")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
SAMPLE_LINES = 200


def guess_options(file: str, given: Mapping[str, Any]) -> CsvOptions:
    """The options of a file. A delimiter, header and decimal point that are not given, or None, are guessed.

    The delimiter is the one that splits most lines into the same number of fields. The first line is data if
    all columns of numbers, of which there is at least one, begin with a number.

    Raises:
        UserError: the file cannot be read, or an option is wrong.
    """
    known = {key: value for key, value in given.items() if value is not None}
    header = known.get("header", False if "names" in known else None)
    options = CsvOptions.parse(known | {"header": bool(header)})
    with reading(file), decoded_stream(file, options.encoding) as stream:
        text = stream.read(HEADER_BYTES).decode(errors="ignore").removeprefix("\ufeff")
    whole = text[: text.rfind("\n") + 1] if len(text) > HEADER_BYTES // 4 else text
    candidates = (options.delimiter,) if options.delimiter else DELIMITERS
    lines = {one: _split(whole, one) for one in candidates}
    delimiter = max(candidates, key=lambda one: _score(lines[one]))
    rows = lines[delimiter]
    options = replace(options, delimiter=delimiter)
    if "decimal" not in known and delimiter != ",":
        fields = [field for row in rows[1:] for field in row]
        has_comma = any(DECIMAL_COMMA.fullmatch(field) for field in fields)
        has_point = any("." in field and NUMBER.fullmatch(field) for field in fields)
        options = replace(options, decimal="," if has_comma and not has_point else ".")
    return replace(options, header=_has_header(rows, options)) if header is None else options


def _split(text: str, delimiter: str) -> list[list[str]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = []
    for row in lines:
        if row:
            rows.append([field.strip() for field in row])
        if len(rows) > SAMPLE_LINES:
            break
    return rows


def _score(rows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """The share of lines with the commonest number of fields, 0 if that is one field, and that number."""
    if not rows:
        return 0.0, 0
    width, count = Counter(map(len, rows)).most_common(1)[0]
    return (count / len(rows) if width > 1 else 0.0), width


def _has_header(rows: Sequence[Sequence[str]], options: CsvOptions) -> bool:
    if len(rows) < 2 or len(set(rows[0])) < len(rows[0]):
        return len(rows) < 2
    numeric = []
    for position, first in enumerate(rows[0]):
        values = [row[position] for row in rows[1:] if len(row) > position]
        present = [value for value in values if value not in options.missing]
        if present and all(map(_is_number, present)):
            numeric.append(_is_number(first))
    return not all(numeric) if numeric else True


def _is_number(field: str) -> bool:
    return NUMBER.fullmatch(field.replace(",", ".", 1)) is not None
