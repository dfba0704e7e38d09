"""Gate weights of each task and expert: over all rows, by subgroup, and compared between tasks.

`which` are the arguments of `Run.outputs`: `split`, `checkpoint` and `replica`. A model without gates raises
UserError.

N rows, T tasks, E experts.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mmoe.analysis.drawing import (
    HATCHES,
    LIGHT,
    MAX_COLUMNS,
    fit_name,
    heat_map,
    legend_beside,
    panels,
    rows_name,
)
from mmoe.checks.arguments import check_integers
from mmoe.errors import UserError
from mmoe.run import Run, load

NO_LEVEL = "(missing or unseen)"


def gate_weights(run: Run | Path | str, **which: Any) -> pd.DataFrame:
    """Compute the mean gate weight of each task (row) and expert (column)."""
    return pd.DataFrame({task: weights.mean() for task, weights in load(run).gates(**which).items()}).T


def plot_gate_weights(run: Run | Path | str, **which: Any) -> Figure:
    """Draw `gate_weights` as a heat map."""
    table = gate_weights(run, **which).rename(fit_name)
    longest = max(len(line) for name in table.index for line in name.split("\n"))
    width = 1 + 0.08 * longest + 0.55 * len(table.columns)
    figure, (axes,) = panels(1, width=width, height=1.5 + 0.45 * len(table))
    heat_map(axes, table, "mean gate weight", _darkest(float(table.to_numpy().max()), len(table.columns)))
    axes.set(xlabel="expert", ylabel="task", title=f"Gate weights, {rows_name(which)}")
    return figure


def _darkest(largest: float, num_experts: int) -> float:
    """The weight that is drawn in black: the largest one, but at least twice an equal share of the experts.

    So equal weights are grey.
    """
    return max(largest, min(1.0, 2 / num_experts))


def plot_gate_distributions(run: Run | Path | str, **which: Any) -> Figure:
    """Draw the distribution of the gate weights over rows, as in figure 6 of the paper."""
    weights_by_task = load(run).gates(**which)
    num_experts = next(iter(weights_by_task.values())).shape[1]
    figure, (axes,) = panels(1, width=min(3 + 0.75 * num_experts, 12), height=3.4)
    width = 0.8 / len(weights_by_task)
    for i, (task, weights) in enumerate(weights_by_task.items()):
        boxes = axes.boxplot(
            weights.to_numpy(),
            positions=np.arange(num_experts) + (i - (len(weights_by_task) - 1) / 2) * width,
            widths=0.85 * width, whis=(5, 95), showfliers=False, patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.6},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor=LIGHT[i % 4], hatch=HATCHES[i % 4])
        boxes["boxes"][0].set_label(fit_name(task))
    axes.set_xticks(np.arange(num_experts), [str(e) for e in range(num_experts)])
    top = max(float(weights.quantile(0.95).max()) for weights in weights_by_task.values())
    axes.set(xlabel="expert", ylabel="gate weight", ylim=(0, 1.05 * top))
    title = f"Gate weights over {rows_name(which)} (box: quartiles, whiskers: 5 and 95 %)"
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    legend_beside(axes)
    return figure


def gate_weights_by(
    run: Run | Path | str, column: str, bands: int | Sequence[float] = 5, max_levels: int = 12, **which: Any
) -> pd.DataFrame:
    """Group the rows by a column, and compute the mean gate weights of each group.

    The table has a row for each group, the columns (task, expert), and `rows`, the size of the group.

    Args:
        run: a run or its folder.
        column: a column of the rows; it need not be an input if the rows are in memory.
        bands: for a numeric column with many values, the number of quantile bands, or the edges of the bands.
            Every band includes its upper edge, and the lowest band also its lower edge. A quantile band is
            named by the smallest and the largest value in it, and a band with given edges by its edges. Bands
            of whole numbers are named by their first and last number.
        max_levels: for a column of text, the number of levels to show; `(other)` holds the rarer ones.
        which: the arguments of `Run.outputs`.
    """
    run = load(run)
    which = {"split": "test", "replica": None} | which
    weights = run.gates(**which)
    values = run.column(column, which["split"], which["replica"])
    are_dates = any(one.name == column and one.is_datetime for one in run.schema.numeric)
    groups = subgroups(values, bands, max_levels, are_dates)
    table = pd.concat(
        {task: values.groupby(groups, observed=True).mean() for task, values in weights.items()}, axis=1
    )
    table.insert(0, ("rows", ""), groups.value_counts().reindex(table.index))
    table.index.name = column
    return table


def plot_gate_weights_by(run: Run | Path | str, column: str, **options: Any) -> Figure:
    """Draw `gate_weights_by` as one heat map per task."""
    table = gate_weights_by(run, column, **options)
    tasks = [name for name in table.columns.get_level_values(0).unique() if name != "rows"]
    counts = table["rows"].to_numpy().ravel()
    labels = [f"{fit_name(name, 40, 1)} ({count:,})" for name, count in zip(table.index, counts, strict=True)]
    num_experts = table[tasks[0]].shape[1]
    margin = (2.2 + 0.08 * max(map(len, labels))) / min(len(tasks), MAX_COLUMNS)  # of the labels, in inches
    height = 1.6 + 0.33 * len(table)
    figure, all_axes = panels(len(tasks), width=margin + 0.5 * num_experts, height=height, share_y=True)
    largest = _darkest(float(table[tasks].to_numpy().max()), num_experts)
    for axes, task in zip(all_axes, tasks, strict=True):
        part = pd.DataFrame(table[task]).set_axis(labels)
        heat_map(axes, part, "mean gate weight" if axes is all_axes[-1] else None, largest)
        axes.set(xlabel="expert", title=fit_name(task))
    all_axes[0].set_ylabel(f"{fit_name(column.replace('_', ' '))} (rows)", labelpad=8)
    return figure


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


def gate_similarity(run: Run | Path | str, **which: Any) -> pd.DataFrame:
    """Compute the cosine similarity between the tasks' gate weights, averaged over rows."""
    weights = {task: values.to_numpy() for task, values in load(run).gates(**which).items()}
    unit = {task: values / np.linalg.norm(values, axis=1, keepdims=True) for task, values in weights.items()}
    return pd.DataFrame({a: {b: (unit[a] * unit[b]).sum(1).mean() for b in unit} for a in unit})


def plot_gate_similarity(run: Run | Path | str, **which: Any) -> Figure:
    """Draw `gate_similarity` as a heat map."""
    table = gate_similarity(run, **which).rename(index=fit_name, columns=partial(fit_name, max_lines=1))
    size = 2.2 + 0.8 * len(table)
    figure, (axes,) = panels(1, width=size + 0.8, height=size)
    heat_map(axes, table, "mean cosine of gate weights", 1.0)
    axes.set(xlabel="task", ylabel="task", title=f"Similarity of gates, {rows_name(which)}")
    return figure
