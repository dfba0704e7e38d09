"""Statistics of a numeric column.

They are computed part by part and then merged. The result depends neither on how the rows are cut into parts
nor on the order of the merges. A column of more than `MAX_DISTINCT` distinct numbers keeps a random sample of
them, with exact counts. `NumberStatistics.values()` returns the values of all rows, or of about `SAMPLE_ROWS`
random ones.

N rows, V distinct values.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pandas as pd

from mmoe.data.hashes import row_hashes

MAX_DISTINCT = 2**17  # distinct values of a numeric column that are kept
SAMPLE_ROWS = 2**18  # the sample has about this many rows


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
