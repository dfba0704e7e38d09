"""Encode frames of raw rows as tensors.

N rows, K values of a column in a row, V values in all rows of a multi-valued column.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import torch

from mmoe.data.batch import Batch
from mmoe.data.columns import Categorical, Numeric
from mmoe.data.encode_labels import decode_labels, encode_labels
from mmoe.data.frame_values import find_levels, find_numbers
from mmoe.data.schema import Schema
from mmoe.errors import RowError
from mmoe.raw.dates import DateFormat

# How a vocabulary may spell false and true.
BOOLEAN_SPELLINGS = (("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("0", "1"))
WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(\.0*)?")

# Whether each spelling of a boolean means true. If all levels of a vocabulary are booleans, new rows may
# spell them in another way: Parquet and CSV spell booleans differently.
TRUTH = {name: bool(truth) for spelling in BOOLEAN_SPELLINGS for truth, name in enumerate(spelling)}


def encode(frame: pd.DataFrame, schema: Schema, may_be_missing: bool = True) -> Batch:
    """Encode raw rows; a missing number is NaN.

    A level that is not in the vocabulary gets the code of rare levels if its column has one, else the unseen
    code.
    Without `may_be_missing`, only columns that had missing values in training may have some. Categorical
    columns may hold text, numbers or booleans, which become text, and multi-valued columns may hold lists.
    Errors count rows from 0, in the order of the frame. Columns are encoded in parallel.

    Raises:
        UserError: a column is missing, occurs twice or has the wrong type, a number is infinite, a value is
            missing, or a label or a weight is invalid.
    """
    levels = torch.empty(len(frame), len(schema.column_of_position), dtype=level_dtype(schema)).numpy()
    numbers = np.empty((len(frame), len(schema.numeric)), np.float32)
    jobs: list[Callable[[], None]] = []
    formats = {number.name: number.date_format for number in schema.numeric}
    position = 0
    for column, offset in zip(schema.categorical, schema.code_offsets, strict=False):
        target = levels[:, position : position + column.max_values]
        date_format, needed = formats.get(column.raw_name), not (may_be_missing or column.has_missing)
        jobs.append(
            partial(_encode_levels, frame, column, date_format, offset, schema.num_codes, target, needed)
        )
        position += column.max_values
    for i, number in enumerate(schema.numeric):
        needed = not (may_be_missing or number.has_missing)
        jobs.append(partial(_encode_numbers, frame, number, numbers[:, i], needed))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for job in [threads.submit(job) for job in jobs]:
            job.result()
    labels, known, weights = encode_labels(frame, schema.tasks)
    return Batch(torch.from_numpy(levels), torch.from_numpy(numbers), labels, known, weights)


def level_dtype(schema: Schema) -> torch.dtype:
    """int16 if it holds the codes of all columns and the code of an unseen level, else int32."""
    return torch.int16 if schema.num_codes <= torch.iinfo(torch.int16).max else torch.int32


def count_unseen(rows: Batch, schema: Schema) -> dict[str, int]:
    """For each column, the number of rows whose value has no input because training did not see it.

    That is a level or a missing value with the code of an unseen level, or a missing number in a column that
    had none in training. Unseen levels with the code of rare levels or of a hash bucket are not counted.
    Columns with several levels in a row are left out.
    """
    counts = (rows.levels == schema.num_codes).sum(0).tolist()
    columns = [schema.categorical[i] for i in schema.column_of_position]
    found = {one.name: count for one, count in zip(columns, counts, strict=True) if not one.is_multi}
    missing = rows.numbers.isnan().sum(0).tolist()
    numeric = zip(schema.numeric, missing, strict=True)
    return found | {one.name: count for one, count in numeric if not one.has_missing}


def hash_level(level: str, buckets: int) -> int:
    """The bucket of a level: CRC-32 of its UTF-8 bytes, modulo the number of buckets."""
    return zlib.crc32(level.encode()) % buckets


def level_codes(names: Sequence[str], column: Categorical) -> np.ndarray:
    """The code of each level in the column, counted from 0; -1 for an unseen level without a code."""
    if column.buckets:
        return np.array([hash_level(name, column.buckets) for name in names], np.int64)
    codes: np.ndarray = column.index.get_indexer(pd.Index(list(names), dtype=object))
    if (codes < 0).any():
        booleans = _boolean_spelling(column.levels)
        others = [booleans[TRUTH[n]] if booleans and n in TRUTH else _other_number_spelling(n) for n in names]
        codes = np.where(codes < 0, column.index.get_indexer(pd.Index(others, dtype=object)), codes)
    return np.where(codes < 0, column.num_codes - 1, codes) if column.has_rare else codes


def _boolean_spelling(levels: Sequence[str]) -> tuple[str, str] | None:
    """How a vocabulary spells false and true; None if its levels are not booleans."""
    return next((pair for pair in BOOLEAN_SPELLINGS if levels and set(levels) <= set(pair)), None)


def _other_number_spelling(level: str) -> str:
    """The whole number 4 as 4.0, 4.0 as 4, and another level as it is."""
    match = WHOLE_NUMBER.fullmatch(level)
    return level if not match else match[1] if match[2] else f"{level}.0"


def _encode_levels(
    frame: pd.DataFrame,
    column: Categorical,
    date_format: DateFormat | None,
    offset: int,
    unseen: int,
    target: np.ndarray,
    needed: bool,
) -> None:
    """Write the codes of a column to `target` [N, K]. If it is `needed`, no value may be missing."""
    levels = find_levels(frame, column, date_format)
    codes, names, row_offsets = levels
    if needed and (codes < 0).any():
        first = int((codes < 0).argmax())
        row = first if row_offsets is None else int(levels.rows[first])
        raise RowError(column.raw_name, row, "must not be missing")
    # Missing values get the code after the levels: their own code, or else that of rare and unseen levels.
    has_code = column.has_missing or column.has_rare
    missing = (column.buckets or len(column.levels)) if has_code else -1
    lookup = np.append(level_codes(names, column), missing)
    lookup = np.where(lookup < 0, unseen, lookup + offset)
    # A missing level has the code -1, which picks the last entry.
    found = lookup.astype(target.dtype).take(codes, mode="wrap")  # [N] or [V]
    if row_offsets is None:
        target[:, 0] = found
        return
    # A known level counts once in a row, and the first `max_values` of a row are kept.
    pairs = pd.DataFrame({"row": levels.rows, "code": found})
    pairs = pairs[pairs["code"] != unseen].drop_duplicates()
    place = pairs.groupby("row").cumcount().to_numpy()
    kept = place < column.max_values
    target[:] = unseen
    target[pairs["row"].to_numpy()[kept], place[kept]] = pairs["code"].to_numpy()[kept]


def _encode_numbers(frame: pd.DataFrame, column: Numeric, target: np.ndarray, needed: bool) -> None:
    """Write the numbers of a column to `target` [N]. If it is `needed`, no number may be missing."""
    numbers = find_numbers(frame, column.name, column.date_format)
    if needed and (is_missing := np.isnan(numbers)).any():
        raise RowError(column.name, int(is_missing.argmax()), "must not be missing")
    if column.origin:
        numbers = numbers.astype(np.float64) - column.origin
    target[:] = numbers


def decode(rows: Batch, schema: Schema) -> pd.DataFrame:
    """The inverse of `encode`: levels as text, numbers, and labels by task.

    A level is None if it is missing, unseen or hashed, and `(rare)` if it has the code of rare levels. A
    multi-valued column has lists. Dates are days since 1970, and their parts are columns of their own.
    """
    levels, numbers = rows.levels.cpu().numpy(), rows.numbers.cpu().numpy()
    names = np.array([n for c in schema.categorical for n in c.code_names] + [None], dtype=object)
    columns: dict[str, object] = {}
    position = 0
    for column in schema.categorical:
        found = names[levels[:, position : position + column.max_values]]
        position += column.max_values
        if column.is_multi:
            columns[column.name] = [[level for level in row if level is not None] for row in found]
        else:
            columns[column.name] = found[:, 0]
    for i, number in enumerate(schema.numeric):
        values = numbers[:, i]
        columns[number.name] = values.astype(np.float64) + number.origin if number.origin else values
    return pd.DataFrame(columns | decode_labels(rows.labels, rows.known, schema.tasks))
