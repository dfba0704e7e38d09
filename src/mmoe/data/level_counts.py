"""Counts of the levels of a categorical column. They are exact.

They are computed part by part and then merged. The result depends neither on how the rows are cut into
parts nor on the order of the merges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmoe.errors import UserError

MAX_LEVELS = 2**26  # a column with more levels is refused, unless they are hashed


@dataclass(frozen=True)
class LevelCounts:
    """The levels of a categorical column, and how many rows have each.

    Attributes:
        levels: their names; no name occurs twice.
        counts: rows by level.
        has_missing: the value of a row is missing; an empty list is not.
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
