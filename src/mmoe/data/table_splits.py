"""Choose which rows of a table are validation and test rows.

N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmoe.data.column_options import unknown_key
from mmoe.data.dates import dates_of, guess_format
from mmoe.data.raw_column import column_of, is_categorical, kind_of, levels_of, numbers_of
from mmoe.errors import ArgumentError, UserError, is_number
from mmoe.tasks.labels import level_text
from mmoe.tasks.labels import levels_of as label_levels_of


@dataclass(frozen=True)
class SplitRule:
    """How rows are chosen. One of `fraction`, `last` and `column` must be given.

    Attributes:
        fraction: a random share of the rows; with `by`, of the groups of rows that are equal in a column.
        last: the share of rows with the largest values in the column `by`, such as the latest dates.
        by: see `fraction` and `last`.
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
        if self.last is not None and self.by is None:
            raise ArgumentError("last: needs by, the column that orders the rows")
        if (self.column is None) != (self.value is None):
            raise ArgumentError("column: needs value, the level of the chosen rows")
        if self.by is not None and self.column is not None:
            raise ArgumentError(f"by={self.by}: must be left out beside column")
        if self.of not in ("train", "test"):
            raise ArgumentError(f"of={self.of}: must be train or test")

    @property
    def needed_columns(self) -> list[str]:
        """The columns of the raw rows that the rule looks at."""
        return [name for name in (self.by, self.column) if name]


def parse(name: str, given: Any) -> "SplitRule | list[str]":
    """What a configuration gives for a split: files, or a rule as a mapping.

    Raises:
        ArgumentError: the value breaks a rule.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, list | tuple) and given and all(isinstance(file, str) for file in given):
        return list(given)
    if not isinstance(given, Mapping):
        rule = "must be a file, a list of files, or a mapping such as {fraction: 0.1}"
        raise ArgumentError(f"{name}={given}: {rule}")
    known = [one.name for one in fields(SplitRule)]
    for key in given:
        if key not in known:
            raise ArgumentError(f"{name}.{key}: {unknown_key(str(key), known)}")
    try:
        return SplitRule(**given)
    except ArgumentError as error:
        raise ArgumentError(f"{name}.{error}") from None


def choose(
    rule: SplitRule,
    frame: pd.DataFrame,
    available: np.ndarray,
    seed: int,
    name: str,
    day_first: bool | None = None,
) -> np.ndarray:
    """The sorted positions of the chosen rows, among the `available` positions [N].

    `day_first` is what the user says of dates in the column `by`; see `ColumnOptions`.

    Raises:
        UserError: no row is chosen, or none is left.
    """
    if rule.column:
        mask = _holds(column_of(frame, rule.column), rule.value)[available]
    elif rule.last:
        mask = _is_last(column_of(frame, str(rule.by)), available, rule.last, name, day_first)
    elif rule.by:
        mask = _is_in_groups(column_of(frame, rule.by), available, float(rule.fraction or 0), seed, name)
    else:
        order = torch.randperm(len(available), generator=torch.Generator().manual_seed(seed)).numpy()
        mask = np.zeros(len(available), bool)
        mask[order[: int(len(available) * float(rule.fraction or 0))]] = True
    for rows, what in ((mask, f"choose at least one {name} row"), (~mask, "leave at least one other row")):
        if not rows.any():
            raise UserError(f"data.{name}: must {what} of {len(available):,}")
    chosen: np.ndarray = available[mask]
    return chosen


def _holds(values: pd.Series, value: Any) -> np.ndarray:
    wanted = {level_text(one) for one in (value if isinstance(value, list | tuple) else [value])}
    codes, names = label_levels_of(values)
    mask: np.ndarray = np.array([*(name in wanted for name in names), False])[codes]
    return mask


def _is_last(
    values: pd.Series, available: np.ndarray, share: float, name: str, day_first: bool | None
) -> np.ndarray:
    """The rows whose values are above the quantile; rows with equal values are never separated."""
    is_date = is_categorical(values) and not _holds_numbers(values)
    found = dates_of(values, guess_format(values, day_first)) if is_date else numbers_of(values)
    missing = np.isnat(found) if is_date else np.isnan(found)
    ordered = found.astype(np.int64) if is_date else found
    _check_present(missing, available, str(values.name), name)
    ordered = ordered[available]
    first = np.sort(ordered)[int(len(ordered) * (1 - share))]
    mask: np.ndarray = ordered > first if first == ordered.min() else ordered >= first
    return mask


def _holds_numbers(values: pd.Series) -> bool:
    try:
        numbers_of(values)
    except UserError:
        return False
    return kind_of(values) != "boolean"


def _is_in_groups(
    values: pd.Series, available: np.ndarray, fraction: float, seed: int, name: str
) -> np.ndarray:
    codes, names, _ = levels_of(values)
    _check_present(codes < 0, available, str(values.name), name)
    groups = np.unique(codes[available])
    if len(groups) < 2:
        rule = f"column {values.name} must have at least two groups, has only {names[groups[0]]!r}"
        raise UserError(f"data.{name}.by: {rule}")
    # Groups are shuffled by name, so that the order of the rows does not matter.
    by_name = groups[np.argsort(np.array(names, dtype=object)[groups], kind="stable")]
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).numpy()
    chosen = by_name[order[: max(1, round(len(groups) * fraction))]]
    mask: np.ndarray = np.isin(codes[available], chosen)
    return mask


def _check_present(is_missing: np.ndarray, available: np.ndarray, column: str, name: str) -> None:
    wrong = is_missing[available]
    if wrong.any():
        row = int(available[wrong.argmax()])
        raise UserError(f"data.{name}.by: column {column} must have a value in every row, row {row} has none")
