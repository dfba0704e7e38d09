"""The columns of a schema: categorical and numeric ones.

The classes check their values when they are constructed.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mmoe.checks import fields as check
from mmoe.errors import ArgumentError
from mmoe.raw.dates import UNITS, DateFormat

if TYPE_CHECKING:
    import pandas as pd

DATE_PARTS = ("year", "month", "weekday", "hour")
TARGET_ENCODINGS = ("target", "one_hot_and_target")
NUMBER_ENCODINGS = ("standard", "min_max", "unscaled", "piecewise_linear", "piecewise_linear_and_values")
RARE = "(rare)"  # the name of the code of rare and unseen levels


@dataclass(frozen=True)
class Categorical:
    """A categorical column. It has a code for each level. By default, each code is an input.

    Attributes:
        name: the name of the column.
        levels: the vocabulary: the levels in the training rows, sorted as text or as integers.
        mode: the most frequent code in the training rows, counted from 0. For rows in shards,
            missing and rare values are not counted, and `buckets` have mode 0. Results do not depend on it,
            except for rounding.
        source: the column of the raw rows; empty if it has the same `name`.
        part: the part of a date and time that is the level: `year`, `month`, `weekday` or `hour`.
        buckets: if above 0, there is no vocabulary: a hash of the level is its code.
        has_missing: training rows had missing values, which have a code of their own.
        has_rare: training rows had levels that are too rare for the vocabulary. Rare and unseen levels share
            one code.
        size: if above 0, the inputs are a learned vector of this size, not one input for each code.
        is_multi: a row has several levels.
        separator: the text between two levels of a row; empty for lists.
        max_values: the largest number of levels in a row; 1 unless `is_multi`.
        encoding: `target`: the inputs are statistics of a row's level. `one_hot_and_target`: one input for
            each code, and these statistics. Empty: neither.
        statistics: for each code, numbers computed from its training rows: from their labels and from how
            many there are; see `target_statistics`. Empty without an encoding.

    Without `has_missing`, a missing value is encoded as unseen; without `has_rare`, an unseen level has no
    code, and all its inputs are 0.

    Raises:
        ArgumentError: a value has the wrong type or is out of range, or the levels are not unique and sorted.
    """

    name: str
    levels: tuple[str, ...]
    mode: int = field(default=0, compare=False)
    source: str = ""
    part: str = ""
    buckets: int = 0
    has_missing: bool = False
    has_rare: bool = False
    size: int = 0
    is_multi: bool = False
    separator: str = ""
    max_values: int = 1
    encoding: str = ""
    statistics: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        check.fields(self, "categorical.", name=check.text)
        where = f"categorical.{self.name}"
        counts = dict.fromkeys(("mode", "buckets", "size"), check.count)
        flags = dict.fromkeys(("has_missing", "has_rare", "is_multi"), check.flag)
        check.fields(self, f"{where}.", levels=check.levels, max_values=check.positive, **counts, **flags)
        check.fields(self, f"{where}.", source=check.any_text, separator=check.any_text)
        if self.part not in ("", *DATE_PARTS):
            raise ArgumentError(f"{where}.part={self.part}: must be one of {', '.join(DATE_PARTS)}, or empty")
        if self.buckets and (self.levels or self.has_rare):
            raise ArgumentError(f"{where}.buckets={self.buckets}: must be 0 for a column with levels")
        if self.max_values > 1 and not self.is_multi:
            raise ArgumentError(f"{where}.max_values={self.max_values}: must be 1, because it is not multi")
        if self.encoding not in ("", *TARGET_ENCODINGS):
            rule = f"must be one of {', '.join(TARGET_ENCODINGS)}, or empty"
            raise ArgumentError(f"{where}.encoding={self.encoding}: {rule}")
        if self.encoding and self.size:
            raise ArgumentError(f"{where}.size={self.size}: must be 0 with encoding={self.encoding}")
        check.fields(self, f"{where}.", statistics=check.table)
        if self.statistics and not (self.encoding and len(self.statistics) == self.num_codes):
            rule = f"must have {self.num_codes if self.encoding else 0} entries"
            raise ArgumentError(f"{where}.statistics: {rule}, has {len(self.statistics)}")
        if self.mode >= max(1, self.num_codes):
            raise ArgumentError(
                f"{where}.mode={self.mode}: must be below {self.num_codes}, the number of codes"
            )

    @property
    def raw_name(self) -> str:
        """The name of the column in the raw rows."""
        return self.source or self.name

    @property
    def num_codes(self) -> int:
        """The number of codes: levels or buckets, then missing, then rare."""
        return (self.buckets or len(self.levels)) + self.has_missing + self.has_rare

    @property
    def is_one_hot(self) -> bool:
        """Whether each code is an input."""
        return not self.size and self.encoding != "target"

    @cached_property
    def index(self) -> "pd.Index[Any]":
        """The levels, to look up their codes."""
        import pandas as pd

        return pd.Index(self.levels, dtype=object)

    @property
    def code_names(self) -> list[str | None]:
        """The level of each code; None for a bucket and for missing values."""
        named: list[str | None] = [None] * self.buckets if self.buckets else list(self.levels)
        return named + [None] * self.has_missing + [RARE] * self.has_rare


@dataclass(frozen=True)
class Numeric:
    """A numeric column, with statistics of the training rows.

    Attributes:
        name: the name of the column.
        mean, std: the mean and the population standard deviation.
        bins: the increasing edges of the quantile bins: N + 1 edges make N bins. The first and the last edge
            are the smallest and the largest number of the training rows. Synthetic data has fixed edges.
        frequent_values: the frequent values, sorted.
        origin: a number that is subtracted before a number is rounded to float32, and before the statistics
            are computed. It is 0, unless float32 would round different large numbers to the same number.
        has_missing: training rows had missing numbers. One more input is 1 where the number is missing.
        is_datetime: the raw column holds dates, which become days since 1970.
        unit: the unit of Unix times in a column of dates: `s`, `ms`, `us` or `ns`; empty if there were none.
        day_first: in a column of dates, 1/2/2025 is the first of February.
        encoding: one of `NUMBER_ENCODINGS`; empty: the encoding that `Inputs` gives to all other numbers.

    A constant column has std 1 and a single bin, which begins at its value. An empty one has std 1 and the
    bin from 0 to 1.

    Raises:
        ArgumentError: a value has the wrong type or is not finite, `std` is not above 0, or the edges or the
            frequent values do not increase.
    """

    name: str
    mean: float
    std: float
    bins: tuple[float, ...]
    frequent_values: tuple[float, ...] = ()
    origin: float = 0.0
    has_missing: bool = False
    is_datetime: bool = False
    unit: str = ""
    day_first: bool = False
    encoding: str = ""

    def __post_init__(self) -> None:
        check.fields(self, "numeric.", name=check.text)
        for key, allowed in (("encoding", NUMBER_ENCODINGS), ("unit", UNITS)):
            if getattr(self, key) not in ("", *allowed):
                rule = f"must be one of {', '.join(allowed)}, or empty"
                raise ArgumentError(f"numeric.{self.name}.{key}={getattr(self, key)}: {rule}")
        statistics = {
            "mean": check.number,
            "std": check.positive_number,
            "bins": check.bins,
            "frequent_values": check.increasing,
            "origin": check.number,
        }
        flags = dict.fromkeys(("has_missing", "is_datetime", "day_first"), check.flag)
        check.fields(self, f"numeric.{self.name}.", **statistics, **flags)

    @property
    def raw_name(self) -> str:
        """The name of the column in the raw rows."""
        return self.name

    @property
    def date_format(self) -> DateFormat | None:
        """How the dates of the raw column are written; None if it holds numbers."""
        return DateFormat(self.unit, self.day_first) if self.is_datetime else None


def column_rank(column: Categorical) -> int:
    """Orders the categorical columns: one-hot (0), then with a size (1), then with statistics alone (2)."""
    return 0 if column.is_one_hot else 1 if column.size else 2
