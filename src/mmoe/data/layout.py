"""Determine the layout of a delimited text file: its separator, its columns and whether it has a header.

This module also knows the official format: that of the census files, which have no header.
"""

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmoe.data import columns
from mmoe.data.census_files import COLUMNS, NUMERIC
from mmoe.data.schema import Schema
from mmoe.data.text_blocks import Block, split_lines
from mmoe.errors import UserError

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
FIRST_COLUMN_NUMBER = re.compile(r"(\D*)([01])")
# With or without the label, and with or without row numbers, whose field has the empty name.
OFFICIAL_FORMATS = (COLUMNS, COLUMNS[:-1], ("", *COLUMNS), ("", *COLUMNS[:-1]))


class Field(NamedTuple):
    """A field that is read from every line."""

    name: str
    position: int  # from 0
    vocabulary: frozenset[str] | None  # the levels that the run knows; None if the column is numeric


@dataclass(frozen=True)
class Layout:
    """What the lines of a file have in common."""

    separator: str
    num_fields: int
    fields: tuple[Field, ...]
    has_header: bool
    has_row_numbers: bool  # in the first field


def find_layout(path: Path, block: Block, schema: Schema) -> tuple[Layout, Block]:
    """Determine the layout of a file from its first block. Also return this block without the header.

    Raises:
        UserError: there is no row, or the first line is neither a header with the inputs of `schema` nor a
            row of the official format.
    """
    numeric = [column.name for column in schema.numeric]
    inputs = [*(column.name for column in schema.categorical), *numeric]
    is_census = set(inputs) <= set(COLUMNS)
    number, line = next(split_lines(block), (0, ""))
    if not number:
        raise UserError(f"{path}: has no rows")
    where = f"{path}, line {number}"
    if "\0" in line:
        what = "must not have NUL bytes; a file in UTF-16 must begin with a byte order mark"
        raise UserError(f"{where}: {what}")
    text = line.encode("latin-1").decode(block.encoding or guess_encoding(block) or "utf-8")
    separator, names = _find_separator(path, number, text, inputs)
    start = block.content.index(line.encode("latin-1")) + len(line)
    rest = Block(number, block.content[start:], block.encoding)  # begins with the line end of the header
    if is_census and _only_numbers_columns(names):
        return find_layout(path, rest, schema)
    found = columns.count_found(names, inputs)
    if is_census and found < min(2, len(inputs)) and any(map(_is_number, names)):
        return _headerless_layout(where, names, separator, schema), block
    if not found:
        row = f", or a row of {len(COLUMNS)} fields" * is_census
        rule = f"must be a header with the names of the run's inputs{row}"
        raise UserError(f"{where}: {rule}, is {text[:40]!r}")
    has_row_numbers = _has_row_number_field(path, rest, separator, len(names))
    if has_row_numbers:
        names = ["", *names]
    positions = dict(zip(inputs, columns.find(names, inputs, where), strict=True))
    fields = _fields(positions, numeric, schema)
    return Layout(separator, len(names), fields, True, has_row_numbers), rest


def parse_line(path: Path, number: int, line: str, separator: str) -> list[str]:
    """The fields of a line, without quotes.

    Raises:
        UserError: a quote is not closed, or text follows a closed quote.
    """
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        rule = f"must be a complete row, with all quotes closed ({error})"
        raise UserError(f"{path}, line {number}: {rule}") from None


def guess_encoding(block: Block) -> str | None:
    """UTF-8 if the block is valid UTF-8, else latin-1. None if the block is ASCII, which fits both."""
    if block.content.isascii():
        return None
    try:
        block.content.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _find_separator(path: Path, number: int, line: str, inputs: Sequence[str]) -> tuple[str, list[str]]:
    """The separator of a file, and the fields of its first line.

    The separator that gives the most names of inputs wins. If several give equally many, one that gives as
    many fields as the official format wins, or else the one that gives the most fields.
    """
    is_tsv = path.name.lower().removesuffix(".gz").endswith(".tsv")
    found = []
    for separator in ("\t",) if is_tsv else SEPARATORS:
        try:
            found.append((separator, parse_line(path, number, line, separator)))
        except UserError as caught:
            error = caught
    if not found:
        raise error
    sizes = {len(names) for names in OFFICIAL_FORMATS}
    return max(
        found, key=lambda pair: (columns.count_found(pair[1], inputs), len(pair[1]) in sizes, len(pair[1]))
    )


def _headerless_layout(where: str, first: Sequence[str], separator: str, schema: Schema) -> Layout:
    """Determine the layout of a file in the official format from the fields of its first line."""
    rule = f"must have {len(COLUMNS)} {SEPARATORS[separator]}-separated fields"
    possible = [names for names in OFFICIAL_FORMATS if len(names) == len(first)]
    if not possible:
        without_label = f"{len(COLUMNS) - 1} without the label"
        raise UserError(f"{where}: {rule} ({without_label}), or a header; has {len(first)}")

    def fits(names: Sequence[str]) -> bool:
        pairs = zip(names, first, strict=True)
        return all(_is_number(field) for name, field in pairs if name in NUMERIC or name == "")

    names = next(filter(fits, possible), possible[0])
    if names[0] == "" and first[0] not in ("0", "1"):
        first_number = "after the row number, which must be 0 or 1 in the first row"
        raise UserError(f"{where}: {rule} {first_number}; it is {first[0][:40]!r}")
    positions = {name: position for position, name in enumerate(names) if name}
    fields = _fields(positions, NUMERIC, schema)
    return Layout(separator, len(names), fields, False, has_row_numbers=names[0] == "")


def _fields(positions: Mapping[str, int], numeric: Collection[str], schema: Schema) -> tuple[Field, ...]:
    known = {column.name: frozenset(column.levels) for column in schema.categorical}
    return tuple(
        Field(name, position, None if name in numeric else known.get(name, frozenset()))
        for name, position in positions.items()
    )


def _only_numbers_columns(names: Sequence[str]) -> bool:
    """Whether a header only numbers the columns: 0, 1, ... as in pandas, or V1, V2, ... as in R."""
    numbered = names[names[0] == "" :]
    begin = FIRST_COLUMN_NUMBER.fullmatch(numbered[0]) if numbered else None
    if not begin or len(numbered) not in (len(COLUMNS), len(COLUMNS) - 1):
        return False
    prefix, first = begin[1], int(begin[2])
    return list(numbered) == [f"{prefix}{i}" for i in range(first, first + len(numbered))]


def _has_row_number_field(path: Path, rest: Block, separator: str, num_names: int) -> bool:
    """Whether rows begin with a row number that has no name in the header, as R writes them."""
    number, line = next(split_lines(rest), (0, ""))
    try:
        fields = parse_line(path, number, line, separator) if number else []
    except UserError:
        return False
    return len(fields) == num_names + 1 and fields[0] in ("0", "1")


def _is_number(field: str) -> bool:
    return columns.NUMBER.fullmatch(field.strip()) is not None
