"""Choose which rows of a table are validation and test rows.

N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmoe.data.hashes import level_hashes, row_hashes
from mmoe.data.split_rules import SplitRule
from mmoe.data.splits import CONFIG_KEYS
from mmoe.errors import RowError, UserError
from mmoe.raw.dates import DateFormat, dates_of, guess_format
from mmoe.raw.frame_column import column_of, is_categorical, kind_of
from mmoe.raw.levels import levels_of
from mmoe.raw.numbers import numbers_of
from mmoe.tasks.labels import label_levels, level_text

MAX_SHUFFLED_ROWS = 2**24  # with more rows, each is chosen independently of the others


@dataclass(frozen=True)
class RowFilter:
    """A rule that looks at each row by itself, for rows that are not in memory together.

    Attributes:
        name: the split, `validation` or `test`.
        threshold: for `last`, the least value of a chosen row.
        date_format: for `last`, the format of the dates that order the rows; None for numbers.
    """

    name: str
    rule: SplitRule
    seed: int
    threshold: float
    date_format: DateFormat | None

    def __call__(self, frame: pd.DataFrame, first_row: int) -> np.ndarray:
        """Which rows of the frame are chosen [N]; `first_row` is the number of its first row.

        Raises:
            RowError: a row has no value in the column `by`.
        """
        rule, salt = self.rule, f"{self.name} {self.seed}"
        if rule.column:
            return _holds(column_of(frame, rule.column), rule.value)
        if rule.last:
            return ordered_values(rule, frame, self.date_format, self.name) >= self.threshold
        fraction = float(rule.fraction or 0)
        if not rule.by:
            return row_hashes(first_row, len(frame), salt) < fraction
        values = column_of(frame, rule.by)
        codes, names, _ = levels_of(values)
        _check_present(codes < 0, rule.by, self.name)
        chosen: np.ndarray = (level_hashes(names, salt) < fraction)[codes]
        return chosen


def row_filter(
    rule: SplitRule, sample: np.ndarray, date_format: DateFormat | None, seed: int, name: str
) -> RowFilter:
    """The filter of a rule. For `last`, `sample` [N] has values of the column from a sample of the rows."""
    threshold = _last_threshold(sample, rule.last) if rule.last else 0.0
    return RowFilter(name, rule, seed, threshold, date_format)


def choose_all(
    rules: Mapping[str, SplitRule],
    rest: str,
    frame: pd.DataFrame,
    seed: int,
    days_first: Mapping[str, bool | None],
) -> dict[str, np.ndarray]:
    """The sorted positions of each split's rows in a frame. The rules choose in turn; `rest` gets the others.

    `days_first` is the option `day_first` of each column; see `ColumnOptions`.

    Raises:
        RowError: a row has no value in the column `by` of a rule.
        UserError: a rule chooses no row, or leaves none.
    """
    chosen = {}
    left = np.arange(len(frame))
    for split, rule in rules.items():
        chosen[split] = choose(rule, frame, left, seed, CONFIG_KEYS[split], days_first.get(rule.by or ""))
        left = left[~np.isin(left, chosen[split])]
    return chosen | {rest: left}


def choose(
    rule: SplitRule,
    frame: pd.DataFrame,
    available: np.ndarray,
    seed: int,
    name: str,
    day_first: bool | None = None,
) -> np.ndarray:
    """The sorted positions of the chosen rows, among the `available` positions [N].

    `day_first` is the option of the column `by`; see `ColumnOptions`. With more than `MAX_SHUFFLED_ROWS`
    rows, each row is chosen independently, as in data that does not fit into memory, so the share is not
    exact.

    Raises:
        RowError: an available row has no value in the column `by`. In a large frame, all rows must have one.
        UserError: no row is chosen, or none is left.
    """
    if len(frame) > MAX_SHUFFLED_ROWS:
        date_format = find_date_format(rule, frame, day_first)
        sample = ordered_values(rule, frame, date_format, name)[available] if rule.last else np.empty(0)
        mask = row_filter(rule, sample, date_format, seed, name)(frame, 0)[available]
    elif rule.column:
        mask = _holds(column_of(frame, rule.column), rule.value)[available]
    elif rule.last:
        date_format = find_date_format(rule, frame, day_first)
        values = ordered_values(rule, frame, date_format, name, available)[available]
        mask = values >= _last_threshold(values, rule.last)
    elif rule.by:
        mask = _is_in_groups(column_of(frame, rule.by), available, float(rule.fraction or 0), seed, name)
    else:
        order = torch.randperm(len(available), generator=torch.Generator().manual_seed(seed)).numpy()
        mask = np.zeros(len(available), bool)
        mask[order[: int(len(available) * float(rule.fraction or 0))]] = True
    check_chosen(name, int(mask.sum()), len(available))
    chosen: np.ndarray = available[mask]
    return chosen


def check_chosen(name: str, chosen: int, available: int) -> None:
    """Raise UserError unless a rule has chosen some of the available rows and left others."""
    for count, what in (
        (chosen, f"choose at least one {name} row"),
        (available - chosen, "leave at least one row to other splits"),
    ):
        if not count:
            raise UserError(f"data.{name}: must {what}; there are {available:,} to choose from")


def find_date_format(rule: SplitRule, frame: pd.DataFrame, day_first: bool | None) -> DateFormat | None:
    """The format of the dates that order the rows; None if numbers do, or no order matters."""
    if not rule.last:
        return None
    values = column_of(frame, str(rule.by))
    holds_dates = is_categorical(values) and not _holds_numbers(values)
    return guess_format(values, day_first) if holds_dates else None


def ordered_values(
    rule: SplitRule,
    frame: pd.DataFrame,
    date_format: DateFormat | None,
    name: str,
    available: np.ndarray | None = None,
) -> np.ndarray:
    """The values of the column that orders the rows [N]: numbers, or seconds for dates in this format.

    Raises:
        RowError: one of the `available` rows has no value.
    """
    values = column_of(frame, str(rule.by))
    found = numbers_of(values) if date_format is None else dates_of(values, date_format)
    missing = np.isnan(found) if date_format is None else np.isnat(found)
    _check_present(missing, str(rule.by), name, available)
    return found if date_format is None else found.astype(np.int64)


def _last_threshold(values: np.ndarray, share: float) -> float:
    """The least value of the last rows; rows with equal values are never separated."""
    ordered = np.sort(values)
    first = ordered[int(len(ordered) * (1 - share))]
    larger = ordered[ordered > first]
    threshold: float = larger[0] if first == ordered[0] and len(larger) else first
    return threshold


def _holds(values: pd.Series, value: Any) -> np.ndarray:
    wanted = {level_text(one) for one in (value if isinstance(value, list | tuple) else [value])}
    codes, names = label_levels(values)
    mask: np.ndarray = np.array([*(name in wanted for name in names), False])[codes]
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
    _check_present(codes < 0, str(values.name), name, available)
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


def _check_present(
    is_missing: np.ndarray, column: str, name: str, available: np.ndarray | None = None
) -> None:
    wrong = np.flatnonzero(is_missing) if available is None else available[is_missing[available]]
    if len(wrong):
        rule = (
            f"must have a value, because data.{name}.by needs one; fill the gaps, or split by another column"
        )
        raise RowError(column, int(wrong[0]), rule)
