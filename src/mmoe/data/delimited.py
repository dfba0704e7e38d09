"""Read the inputs of a run from delimited text.

A file has a header with the column names, in any order, or no header and the columns of the census files,
with or without the label. Fields may be quoted, the first field may be the row number, and the separator may
be a comma, a tab, a semicolon or a bar. The first lines determine the layout, and every other line must
follow it.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.data import columns, headerless_csv
from mmoe.data.layout import SEPARATORS, Layout, find_layout, guess_encoding, parse_line
from mmoe.data.schema import Schema
from mmoe.data.text_blocks import Block, blocks, count_line_ends, split_lines
from mmoe.errors import UserError


def read_delimited(path: Path, schema: Schema) -> Generator[pd.DataFrame]:
    """Raw rows with the inputs of `schema`, one frame for about every 4 MiB of the file.

    Without a header, all columns of the official format are read and checked.

    Raises:
        UserError: the file cannot be read, lacks a column, or a field is invalid; names line and column.
    """
    layout: Layout | None = None
    encoding: str | None = None
    next_number: int | None = None
    with closing(blocks(path)) as parts:
        for block in parts:
            if layout is None:
                layout, block = find_layout(path, block, schema)
                encoding = None if layout.has_header else "latin-1"
            encoding = block.encoding or encoding or guess_encoding(block)
            if encoding == "utf-8":
                _check_utf8(path, block)
            if not block.content.strip(b"\r\n"):
                continue
            arrays = _parse(path, block, layout)
            if layout.has_row_numbers:
                locate = _locator(path, block, 0, "index")
                numbers = columns.to_numbers(arrays.pop(), locate)
                next_number = _check_row_numbers(numbers, next_number, locate)
            frame: dict[str, object] = {}
            for field, array in zip(layout.fields, arrays, strict=True):
                locate = _locator(path, block, field.position, field.name)
                frame[field.name] = columns.convert(array, field.vocabulary, locate, encoding or "utf-8")
            yield pd.DataFrame(frame)


def _parse(path: Path, block: Block, layout: Layout) -> list[pa.Array]:
    """The fields of the layout as arrays of bytes, followed by the row numbers if the file has them.

    Arrow parses blocks without quotes. Python's csv module is slower, but handles quotes and names the line
    of an error.
    """
    positions = [field.position for field in layout.fields] + [0] * layout.has_row_numbers
    if b'"' not in block.content:
        types = dict.fromkeys(map(str, range(layout.num_fields)), pa.null())
        types |= dict.fromkeys(map(str, positions), headerless_csv.LEVEL_TYPE)
        try:
            table = headerless_csv.parse(block.content, types, layout.separator)
            return [table[str(position)].combine_chunks() for position in positions]
        except pa.ArrowInvalid:
            pass
    rows = list(_rows(path, block, layout))
    return [pa.array([row[i].encode("latin-1") for row in rows]).dictionary_encode() for i in positions]


def _rows(path: Path, block: Block, layout: Layout) -> Iterator[list[str]]:
    for number, line in split_lines(block):
        fields = parse_line(path, number, line, layout.separator)
        if len(fields) != layout.num_fields:
            rule = f"must have {layout.num_fields} {SEPARATORS[layout.separator]}-separated fields"
            raise UserError(f"{path}, line {number}: {rule}, has {len(fields)}")
        yield fields


def _locator(path: Path, block: Block, position: int, name: str) -> columns.Locate:
    def locate(row: int) -> str:
        number, _ = next(islice(split_lines(block), row, None))
        return f"{path}, line {number}, column {position + 1} ({name})"

    return locate


def _check_row_numbers(numbers: np.ndarray, start: int | None, locate: columns.Locate) -> int:
    """Check that row numbers increase by 1 from `start`, or from the first one if `start` is None.

    Returns:
        The number of the next row.
    """
    start = int(numbers[0]) if start is None else start
    is_wrong = numbers != np.arange(start, start + len(numbers))
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise UserError(f"{locate(row)}: must be the row number {start + row}, is {numbers[row]:g}")
    return start + len(numbers)


def _check_utf8(path: Path, block: Block) -> None:
    try:
        block.content.decode()
    except UnicodeDecodeError as error:
        number = block.number + count_line_ends(block.content[: error.start])
        raise UserError(f"{path}, line {number}: must be UTF-8, like the lines before it") from None
