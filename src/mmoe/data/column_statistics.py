"""Statistics of columns that are computed part by part and then merged.

The result depends neither on how the rows are cut into parts nor on the order of the merges. The counts of
levels are exact. A column of more than `MAX_DISTINCT` distinct numbers keeps a random sample of them, with
exact counts. `NumberStatistics.values()` returns the values of all rows, or of `SAMPLE_ROWS` random ones.

N rows, V distinct values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.errors import UserError

MAX_DISTINCT = 2**17  # distinct values of a numeric column that are kept
SAMPLE_ROWS = 2**18  # the sample has about this many rows
MAX_LEVELS = 2**26  # levels of a column that are counted


@dataclass(frozen=True)
class LevelCounts:
    """The levels of a categorical column, and how many rows have each.

    Attributes:
        levels: their names; no name occurs twice.
        counts: rows by level.
        has_missing: a row has no level.
        longest: the largest number of levels in a row.
    """

    levels: pa.StringArray
    counts: np.ndarray
    has_missing: bool = False
    longest: int = 1

    @classmethod
    def merge(cls, parts: "Sequence[LevelCounts]", column: str) -> "LevelCounts":
        """Add up the counts of several parts.

        Raises:
            UserError: there are more than `MAX_LEVELS` levels.
        """
        if len(parts) == 1:
            return parts[0]
        table = pa.table(
            {
                "level": pa.chunked_array([part.levels for part in parts], pa.string()),
                "count": pa.chunked_array([pa.array(part.counts, pa.int64()) for part in parts], pa.int64()),
            }
        )
        table = table.group_by("level").aggregate([("count", "sum")])
        if len(table) > MAX_LEVELS:
            rule = f"has more than {MAX_LEVELS:,} levels; give it encoding: hash"
            raise UserError(f"data.columns.{column}: {rule}")
        return cls(
            table["level"].combine_chunks(),
            table["count_sum"].to_numpy(),
            any(part.has_missing for part in parts),
            max(part.longest for part in parts),
        )

    def without_names(self) -> "LevelCounts":
        """The same without levels and counts, for columns whose levels are hashed."""
        return replace(self, levels=self.levels[:0], counts=self.counts[:0])


@dataclass
class NumberStatistics:
    """What is known of the values of a numeric column.

    Attributes:
        distinct, counts: distinct values [V] in increasing order, and rows by value. If `is_exact` is false,
            these are the values with the smallest hashes.
        low, high: the smallest and the largest value.
        has_missing: a value is missing.
        sampled: for each part, the number of its first row and its sampled values.
    """

    distinct: np.ndarray = field(default_factory=lambda: np.empty(0))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    is_exact: bool = True
    low: float = np.inf
    high: float = -np.inf
    has_missing: bool = False
    sampled: list[tuple[int, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, values: np.ndarray, is_sampled: np.ndarray, first_row: int) -> Self:
        """The statistics of values [N], NaN where missing, of which `is_sampled` [N] belong to the sample."""
        is_missing = np.isnan(values)
        known = values[~is_missing]
        statistics = cls(has_missing=bool(is_missing.any()), sampled=[(first_row, values[is_sampled])])
        if len(known):
            statistics.low, statistics.high = float(known.min()), float(known.max())
            statistics._add(*np.unique(known, return_counts=True))
        return statistics

    def merge(self, other: "NumberStatistics") -> None:
        """Add the rows of `other`."""
        self.has_missing |= other.has_missing
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.is_exact &= other.is_exact
        self.sampled += other.sampled
        self._add(other.distinct, other.counts)

    def _add(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Add distinct values, and drop those with the largest hashes if there are too many.

        A value that is kept in the end has one of the smallest hashes in every part. So no part has dropped
        it, and its count is exact.
        """
        joined, place = np.unique(np.concatenate([self.distinct, values]), return_inverse=True)
        total = np.bincount(place, np.concatenate([self.counts, counts]), len(joined)).astype(np.int64)
        if len(joined) > MAX_DISTINCT:
            self.is_exact = False
            hashes = pd.util.hash_array(joined.astype(np.float64))
            kept = np.sort(np.argpartition(hashes, MAX_DISTINCT)[:MAX_DISTINCT])
            joined, total = joined[kept], total[kept]
        self.distinct, self.counts = joined, total

    def values(self) -> np.ndarray:
        """Values that have the distribution of the column, in the order of the rows; missing ones are NaN."""
        parts = [values for _, values in sorted(self.sampled, key=lambda part: part[0])]
        return np.concatenate(parts) if parts else np.empty(0)


def is_in_sample(first_row: int, num_rows: int, total: int) -> np.ndarray:
    """Which rows [N] of a part belong to the sample: about `SAMPLE_ROWS` of `total` rows, or all of them."""
    if total <= SAMPLE_ROWS:
        return np.ones(num_rows, bool)
    return row_hashes(first_row, num_rows, "sample") < SAMPLE_ROWS / total


def row_hashes(first_row: int, num_rows: int, salt: str) -> np.ndarray:
    """For each row [N] a hash of the row's number in the files and the salt, as a number from 0 to 1."""
    numbers = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
    (offset,) = pd.util.hash_array(np.array([salt], dtype=object))
    return _scaled(pd.util.hash_array(numbers ^ offset))


def level_hashes(levels: list[str], salt: str) -> np.ndarray:
    """For each level a hash of the level's name and the salt, as a number from 0 to 1."""
    return _scaled(pd.util.hash_array(np.array([f"{salt} {level}" for level in levels], dtype=object)))


def _scaled(hashes: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = hashes / 2.0**64
    return scaled


def _are_stripped(texts: pa.StringArray) -> pa.BooleanArray:
    """Whether each text is not blank and has no blanks around it."""
    return pc.and_(pc.equal(pc.utf8_trim_whitespace(texts), texts), pc.not_equal(texts, ""))


def value_counts(column: pa.ChunkedArray | pa.Array) -> LevelCounts | None:
    """The levels of text or integers, counted by Arrow.

    None for other types, for text with blanks around it, and for a dictionary that repeats a value.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
        return None
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        levels, has_missing = column.dictionary, column.null_count > 0
        if levels.null_count or pc.count_distinct(levels).as_py() < len(levels):
            return None
        counts = np.bincount(column.indices.drop_null().to_numpy(), minlength=len(levels))
    else:
        counted = pc.value_counts(column)
        levels, counts = counted.field("values"), counted.field("counts").to_numpy()
        has_missing = levels.null_count > 0
    if pa.types.is_string(kind) and not pc.all(_are_stripped(levels)).as_py():
        return None
    occurs = (counts > 0) & levels.is_valid().to_numpy(zero_copy_only=False)
    return LevelCounts(pc.cast(levels.filter(pa.array(occurs)), pa.string()), counts[occurs], has_missing)
