"""What a configuration says about validation and test rows: their files, or a rule that takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from mmoe.checks.arguments import is_number
from mmoe.errors import ArgumentError, unknown_key


@dataclass(frozen=True)
class SplitRule:
    """How rows are chosen. One of `fraction`, `last` and `column` must be given.

    Attributes:
        fraction: a random share of the rows. With `by`, a random share of the groups that have the same value
            in this column.
        last: the share of rows with the largest values in the column `by`, such as the latest dates.
        by: the column of the groups for `fraction`, or of the order for `last`.
        column, value: the rows that hold `value` in `column`; `value` may be a list.
        of: `train` to take the rows from the training file, or `test` from the test file.

    Raises:
        ArgumentError: an option is missing, has no meaning beside another one, or is outside its range.
    """

    fraction: float | None = None
    last: float | None = None
    by: str | None = None
    column: str | None = None
    value: Any = None
    of: str = "train"

    def __post_init__(self) -> None:
        given = [name for name in ("fraction", "last", "column") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ArgumentError(f"{'+'.join(given) or 'fraction'}: give one of fraction, last and column")
        for name in ("fraction", "last"):
            share = getattr(self, name)
            if share is not None and not (is_number(share, Real) and 0 < share < 1):
                raise ArgumentError(f"{name}={share}: must be a number above 0 and below 1")
        for name in ("by", "column"):
            column = getattr(self, name)
            if column is not None and not (isinstance(column, str) and column):
                raise ArgumentError(f"{name}={column}: must be the name of a column")
        if self.last is not None and self.by is None:
            raise ArgumentError("last: needs by, the column that orders the rows")
        if (self.column is None) != (self.value is None):
            raise ArgumentError("column: must be given together with value")
        if self.by is not None and self.column is not None:
            raise ArgumentError(f"by={self.by}: must be left out beside column")
        if self.of not in ("train", "test"):
            raise ArgumentError(f"of={self.of}: must be train or test")

    @property
    def needed_columns(self) -> list[str]:
        """The columns of the raw rows that the rule looks at."""
        return [name for name in (self.by, self.column) if name]


def parse_split(name: str, given: Any) -> SplitRule | list[str]:
    """What a configuration gives for a split: files, or a rule as a mapping.

    Raises:
        ArgumentError: the value breaks a rule.
    """
    files = [given] if isinstance(given, str) else given
    if isinstance(files, list | tuple) and files and all(isinstance(file, str) and file for file in files):
        return list(files)
    if not isinstance(given, Mapping):
        rule = "must be a file or a list of files"
        rule += "" if name == "train" else ", or a mapping such as {fraction: 0.1}"
        raise ArgumentError(f"{name}={given}: {rule}")
    known = [one.name for one in fields(SplitRule)]
    for key in given:
        if key not in known:
            raise ArgumentError(f"{name}.{key}: {unknown_key(str(key), known)}")
    try:
        return SplitRule(**given)
    except ArgumentError as error:
        has_several = sum(given.get(key) is not None for key in ("fraction", "last", "column")) > 1
        how = f"'~data.{name}' '+data.{name}={{...}}'"
        hint = f"; {how} replaces the rule of the configuration" if has_several else ""
        raise ArgumentError(f"{name}.{error}{hint}") from None
