"""Divide the rows into subgroups by a column, and name the subgroups."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from mmoe.checks.arguments import check_integers
from mmoe.errors import UserError

NO_LEVEL = "(missing or unseen)"


def subgroups(
    values: pd.Series, bands: int | Sequence[float] = 5, max_levels: int = 12, are_dates: bool = False
) -> pd.Series:
    """Assign each row to a subgroup. The categories are in the order of the figure; see `gate_weights_by`.

    With `are_dates`, the values are days since 1970, and dates name the subgroups.
    """
    if not pd.api.types.is_numeric_dtype(values):
        named = values.astype(object).where(values.notna(), NO_LEVEL).map(_level_name)
        counts = named.value_counts()
        kept = list(counts.index[:max_levels])
        rest = ["(other)"] if len(counts) > max_levels else []
        return named.where(named.isin(kept), "(other)").astype(pd.CategoricalDtype([*kept, *rest]))
    if values.hasnans:
        groups = subgroups(values.dropna(), bands, max_levels, are_dates).reindex(values.index)
        return groups.cat.add_categories("(missing)").fillna("(missing)")
    if isinstance(bands, int):
        check_integers(1, bands=bands)
        if values.nunique() <= max(bands, 6):
            levels = pd.CategoricalDtype(sorted(values.unique()), ordered=True)
            names = _names([[value] for value in levels.categories], are_dates)
            return values.astype(levels).cat.rename_categories(names)
    lowest = values.min()
    if not isinstance(bands, int):
        edges = np.unique(bands)
        if lowest < edges[0] or values.max() > edges[-1]:
            rule = f"must reach from {lowest:g} to {values.max():g}, as the values do"
            raise UserError(f"bands={list(bands)}: {rule}")
    elif (values == lowest).mean() > 1 / bands:
        # The lowest value, such as 0, fills more than one band, so it gets a band of its own.
        above = np.unique(np.quantile(values[values > lowest], np.linspace(0, 1, bands)))[1:]
        edges = np.array([lowest, np.nextafter(lowest, np.inf), *above])
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bands + 1)))
    cut: pd.Series = pd.cut(values, list(edges), labels=False, include_lowest=True).astype("category")
    if not isinstance(bands, int):
        shown: list[Sequence[float]] = list(pairwise(edges))
        if not are_dates and (values % 1 == 0).all() and (edges % 1 == 0).all():
            # Of whole numbers, a band after the first begins with the number after its lower edge.
            shown[1:] = [sorted({low + 1, high}) for low, high in shown[1:]]
        all_bands = cut.cat.set_categories(range(len(shown)))
        return all_bands.cat.rename_categories(_names(shown, are_dates, is_exact=True))
    # A band between two interpolated quantiles can be empty, so quantile bands are named by their values.
    limits = [sorted({part.min(), part.max()}) for _, part in values.groupby(cut, observed=True)]
    return cut.cat.rename_categories(_names(limits, are_dates))


def _level_name(level: Any) -> str:
    """A level as text. The lists of a multi-valued column are sorted, with commas between their levels."""
    if not isinstance(level, list | tuple | np.ndarray):
        return str(level)
    return ", ".join(sorted(map(str, level))) or NO_LEVEL


def _names(limits: Sequence[Sequence[float]], are_dates: bool, is_exact: bool = False) -> list[str]:
    """A name for each subgroup from its limits, one value or two.

    With `is_exact`, numbers are written as they are. Otherwise, whole numbers are written in full, and others
    get the fewest digits, four or more, with which all names differ. Dates get the time if the days alone do
    not differ. If they lie in one second, they are written as days since 1970.
    """
    values = {value for both in limits for value in both}
    for text in _date_texts() if are_dates else _number_texts(values, is_exact):
        names = [" to ".join(dict.fromkeys(map(text, both))) for both in limits]
        if len(set(names)) == len(names):
            break
    return names


def _number_texts(values: Collection[float], is_exact: bool) -> Iterator[Callable[[float], str]]:
    """Ways to write these numbers, each with more digits than the one before."""
    if not is_exact and all(value % 1 == 0 for value in values):
        yield "{:.0f}".format
    before_point = len(f"{max(map(abs, values)):.0f}")
    for digits in () if is_exact else range(max(4, before_point), 18):
        yield partial(np.format_float_positional, precision=digits, fractional=False, trim="-")
    yield partial(np.format_float_positional, trim="-")


def _date_texts() -> Iterator[Callable[[float], str]]:
    """Ways to write days since 1970: the date, then also the time."""
    for length in (len("2025-12-31"), len("2025-12-31T23:59"), len("2025-12-31T23:59:59")):

        def date(days: float, length: int = length) -> str:
            second = np.datetime64(round(float(days) * 24 * 60 * 60), "s")
            return str(second)[:length].replace("T", " ")

        yield date
    yield str
