"""Read the inputs of a run from delimited text as people have it.

A file has a header with the names of the columns, in any order; or it is in the official format, with or
without the label. Fields may be quoted, rows may be counted in a first field, and the separator may be a
comma, a tab, a semicolon or a bar. Nothing is guessed row by row: the first lines settle the layout, and
every further line must follow it.
"""

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.data import columns, headerless_csv
from mmoe.data.census import COLUMNS, NUMERIC
from mmoe.data.schema import Schema
from mmoe.data.text_blocks import Block, blocks, split
from mmoe.errors import UserError

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
NUMBERED = re.compile(r"(\D*)([01])")
# What a line without a header may hold. An empty name is that of a field that counts the rows.
OFFICIAL = (COLUMNS, COLUMNS[:-1], ("", *COLUMNS), ("", *COLUMNS[:-1]))


class Field(NamedTuple):
    """A field of every line that is read."""

    name: str
    position: int  # from 0
    is_number: bool
    known: frozenset[str]  # the levels of the run


@dataclass(frozen=True)
class Layout:
    """What every line of a file looks like; `count` is the number of fields."""

    separator: str
    count: int
    fields: tuple[Field, ...]
    has_header: bool
    counts_rows: bool  # in the first field


def read_delimited(path: Path, schema: Schema) -> Generator[pd.DataFrame]:
    """Raw rows with the columns of `schema`, about 4 MiB of the file at a time.

    Without a header every column of the official format is read, and checked.

    Raises:
        UserError: the file cannot be read, lacks a column, or a field breaks a rule; names line and column.
    """
    layout: Layout | None = None
    encoding: str | None = None
    count, start = 0, 0
    with closing(blocks(path)) as parts:
        for block in parts:
            if layout is None:
                layout, block = _layout(path, block, schema)
                if not layout.has_header:
                    encoding = "latin-1"
            encoding = block.encoding or encoding or _guess(block)
            if encoding == "utf-8":
                _check_utf8(path, block)
            if not block.content.strip(b"\r\n"):
                continue
            arrays = _arrays(path, block, layout)
            if layout.counts_rows:
                numbers = columns.numbers(arrays.pop(), _place(path, block, 0, "index"))
                start = start if count else int(numbers[0])
                _check_counter(path, block, numbers, start + count)
            count += len(arrays[0])
            frame: dict[str, object] = {}
            for field, array in zip(layout.fields, arrays, strict=True):
                place = _place(path, block, field.position, field.name)
                if field.is_number:
                    frame[field.name] = columns.numbers(array, place, encoding or "utf-8")
                else:
                    frame[field.name] = columns.levels(array, field.known, place, encoding or "utf-8")
            yield pd.DataFrame(frame)


def _layout(path: Path, block: Block, schema: Schema) -> tuple[Layout, Block]:
    """The layout of a file, by its first block, and the block without the header."""
    inputs = [column.name for column in schema.categorical] + [column.name for column in schema.numeric]
    is_census = set(inputs) <= set(COLUMNS)
    number, line = next(split(block), (0, ""))
    if not number:
        raise UserError(f"{path}: has no rows")
    if "\0" in line:
        what = "must not have NUL bytes; a file in UTF-16 must begin with a byte order mark"
        raise UserError(f"{path}, line {number}: {what}")
    title = line.encode("latin-1").decode(block.encoding or _guess(block) or "utf-8")
    separator, names = _separated(path, number, title, inputs)
    start = block.content.index(line.encode("latin-1")) + len(line)
    rest = Block(number, block.content[start:], block.encoding)  # it begins with the header's line end
    if is_census and _is_numbered(names):
        return _layout(path, rest, schema)
    similar = columns.count(names, inputs)
    has_header = not is_census or similar >= min(2, len(inputs)) or not any(map(_is_number, names))
    if not has_header:
        return _official(path, number, names, separator, schema), block
    if not similar:
        rows = f", or a row of {len(COLUMNS)} fields" * is_census
        what = f"must be a header with the names of the run's inputs{rows}"
        raise UserError(f"{path}, line {number}: {what}, is {title[:40]!r}")
    counts_rows = _has_row_names(rest, separator, len(names))
    if counts_rows:
        names = ["", *names]
    positions = dict(zip(inputs, columns.find(names, inputs, f"{path}, line {number}"), strict=True))
    fields = _fields(schema, positions)
    return Layout(separator, len(names), fields, has_header=True, counts_rows=counts_rows), rest


def _separated(path: Path, number: int, line: str, inputs: Sequence[str]) -> tuple[str, list[str]]:
    """The separator and the fields of the first line.

    It is the separator that gives the most names of inputs, then one that gives the official format's number
    of fields, then the one that gives the most fields.
    """
    named = path.name.lower().removesuffix(".gz").endswith(".tsv")
    found = []
    for separator in ("\t",) if named else SEPARATORS:
        try:
            found.append((separator, _parsed(line, separator)))
        except csv.Error as error:
            problem = error
    if not found:
        raise UserError(f"{path}, line {number}: {_quotes(problem)}")
    official = {len(names) for names in OFFICIAL}
    return max(
        found, key=lambda pair: (columns.count(pair[1], inputs), len(pair[1]) in official, len(pair[1]))
    )


def _official(path: Path, number: int, first: Sequence[str], separator: str, schema: Schema) -> Layout:
    """The layout of a file without a header, by the fields of its first line."""
    possible = [names for names in OFFICIAL if len(names) == len(first)]
    what = f"must have {len(COLUMNS)} {SEPARATORS[separator]}-separated fields"
    if not possible:
        what += f" ({len(COLUMNS) - 1} without the label), or a header"
        raise UserError(f"{path}, line {number}: {what}; has {len(first)}")

    def fits(names: Sequence[str]) -> bool:
        pairs = zip(names, first, strict=True)
        return all(_is_number(field) for name, field in pairs if name in NUMERIC or name == "")

    names = next(filter(fits, possible), possible[0])
    if names[0] == "" and first[0] not in ("0", "1"):
        what += f" after one that counts rows from 0 or 1; that one is {first[0][:40]!r}"
        raise UserError(f"{path}, line {number}: {what}")
    positions = {name: position for position, name in enumerate(names) if name}
    known = {column.name: frozenset(column.levels) for column in schema.categorical}
    fields = tuple(Field(n, p, n in NUMERIC, known.get(n, frozenset())) for n, p in positions.items())
    return Layout(separator, len(names), fields, has_header=False, counts_rows=names[0] == "")


def _fields(schema: Schema, positions: dict[str, int]) -> tuple[Field, ...]:
    levels = (Field(c.name, positions[c.name], False, frozenset(c.levels)) for c in schema.categorical)
    numbers = (Field(c.name, positions[c.name], True, frozenset()) for c in schema.numeric)
    return (*levels, *numbers)


def _is_numbered(names: Sequence[str]) -> bool:
    """Whether a header only numbers the columns: 0, 1, ... as pandas does, V1, V2, ... as R does."""
    numbered = names[names[0] == "" :]
    begin = NUMBERED.fullmatch(numbered[0]) if numbered else None
    if not begin or len(numbered) not in (len(COLUMNS), len(COLUMNS) - 1):
        return False
    prefix, first = begin[1], int(begin[2])
    return list(numbered) == [f"{prefix}{i}" for i in range(first, first + len(numbered))]


def _has_row_names(rest: Block, separator: str, count: int) -> bool:
    """Whether rows have a field more than the header, and the first one begins to count, as R writes them."""
    for _, line in split(rest):
        try:
            fields = _parsed(line, separator)
        except csv.Error:
            return False
        return len(fields) == count + 1 and fields[0] in ("0", "1")
    return False


def _arrays(path: Path, block: Block, layout: Layout) -> list[pa.Array]:
    """The fields as bytes, a column for each of the layout; last the counter of rows, if there is one.

    Arrow reads what has no quotes. Python's reader, which is slower, reads the rest, and says what is wrong.
    """
    positions = [field.position for field in layout.fields] + [0] * layout.counts_rows
    if b'"' not in block.content:
        wanted = set(positions)
        types = {str(i): headerless_csv.LEVELS if i in wanted else pa.null() for i in range(layout.count)}
        try:
            table = headerless_csv.table(block.content, types, layout.separator)
            return [table[str(position)].combine_chunks() for position in positions]
        except pa.ArrowInvalid:
            pass
    rows = list(_rows(path, block, layout))
    return [pa.array([row[i].encode("latin-1") for row in rows]).dictionary_encode() for i in positions]


def _rows(path: Path, block: Block, layout: Layout) -> Iterator[list[str]]:
    for number, line in split(block):
        try:
            fields = _parsed(line, layout.separator)
        except csv.Error as error:
            raise UserError(f"{path}, line {number}: {_quotes(error)}") from None
        if len(fields) != layout.count:
            what = f"must have {layout.count} {SEPARATORS[layout.separator]}-separated fields"
            raise UserError(f"{path}, line {number}: {what}, has {len(fields)}")
        yield fields


def _parsed(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))


def _quotes(error: csv.Error) -> str:
    return f"must be a row of its own, with all quotes closed ({error})"


def _place(path: Path, block: Block, position: int, name: str) -> columns.Place:
    def place(row: int) -> str:
        number, _ = next(islice(split(block), row, None))
        return f"{path}, line {number}, column {position + 1} ({name})"

    return place


def _check_counter(path: Path, block: Block, numbers: np.ndarray, start: int) -> None:
    wrong = numbers != np.arange(start, start + len(numbers))
    if wrong.any():
        row = int(wrong.argmax())
        where = _place(path, block, 0, "index")(row)
        raise UserError(f"{where}: must count the rows, so it must be {start + row}, is {numbers[row]:g}")


def _guess(block: Block) -> str | None:
    """UTF-8 if the block can be that, else latin-1; None while there is ASCII alone."""
    if block.content.isascii():
        return None
    try:
        block.content.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _check_utf8(path: Path, block: Block) -> None:
    try:
        block.content.decode()
    except UnicodeDecodeError as error:
        before = Block(block.number, block.content[: error.start] + b"x", None)
        number = list(split(before))[-1][0]
        raise UserError(f"{path}, line {number}: must be UTF-8, as the lines before it") from None


def _is_number(field: str) -> bool:
    return columns.NUMBER.fullmatch(field.strip()) is not None
