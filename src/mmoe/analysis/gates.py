"""How much each task takes of each expert: over all rows, by subgroup, and compared with other tasks."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmoe import runs
from mmoe.analysis.rows import raw_column, scored
from mmoe.errors import UserError
from mmoe.training import report


def gate_weights(folder: Path | str, **which: Any) -> pd.DataFrame:
    """Mean gate weight of each task (line) and expert (column).

    Args:
        folder: the run folder.
        which: `split`, `checkpoint`, `replica` and `trust`, as of `scored`; so in all functions here.

    Raises:
        UserError: the run's model has no gates.
    """
    return pd.DataFrame(
        {task: weights.mean() for task, weights in weights_by_task(folder, **which).items()}
    ).T


def weights_by_task(folder: Path | str, **which: Any) -> dict[str, pd.DataFrame]:
    """Of each task the weights [rows, experts]; errors as of `gate_weights`."""
    frame = scored(folder, **which)
    config, schema = runs.read(Path(folder), ())
    found = {}
    for task in schema.tasks:
        names = [name for e in range(len(frame.columns)) if (name := report.gate_column(task, e)) in frame]
        if not names:
            raise UserError(f"{folder}: its model ({config.model._target_.split('.')[-1]}) has no gates")
        weights = frame[names]
        weights.columns = pd.RangeIndex(len(names), name="expert")
        found[task.name] = weights
    return found


def gate_weights_by(
    folder: Path | str, column: str, bands: int | Sequence[float] = 5, most: int = 12, **which: Any
) -> pd.DataFrame:
    """Mean gate weights of subgroups: line = value or band of a column, columns = (task, expert).

    The column `rows` has the number of rows of each.

    Args:
        folder: the run folder.
        column: any column of the file, an input or not.
        bands: how a column of many numbers is cut: quantiles of this count, or these edges.
        most: levels that are shown, the most frequent; the others are `(other)`.
        which: as of `gate_weights`.
    """
    weights = weights_by_task(folder, **which)
    frame = scored(folder, **which)
    if column in frame:
        given = frame[column]
    else:
        given = raw_column(folder, column, which.get("split", "test"), which.get("trust", ()))
    groups = subgroups(given, bands, most)
    table = pd.concat(
        {task: values.groupby(groups, observed=True).mean() for task, values in weights.items()}, axis=1
    )
    table.insert(0, "rows", groups.value_counts().reindex(table.index))
    table.index.name = column
    return table


def subgroups(values: pd.Series, bands: int | Sequence[float] = 5, most: int = 12) -> pd.Series:
    """The subgroup of each row, as an ordered categorical; see `gate_weights_by`."""
    if not pd.api.types.is_numeric_dtype(values):
        named = values.astype(object).where(values.notna(), "(unseen)").astype(str)
        counts = named.value_counts()
        kept = list(counts.index[:most])
        rest = ["(other)"] if len(counts) > most else []
        return named.where(named.isin(kept), "(other)").astype(pd.CategoricalDtype([*kept, *rest]))
    if isinstance(bands, int) and values.nunique() <= max(bands, 6):
        levels = sorted(values.unique())
        return values.astype(pd.CategoricalDtype(levels, ordered=True)).cat.rename_categories("{:g}".format)
    if not isinstance(bands, int):
        edges = shown = np.unique(bands)
        if values.min() < edges[0] or values.max() > edges[-1]:
            rule = f"must reach from {values.min():g} to {values.max():g}, as the values do"
            raise UserError(f"bands={list(bands)}: {rule}")
    elif (values == (lowest := values.min())).mean() > 1 / bands:  # as of the zeros of a money column
        above = np.unique(np.quantile(values[values > lowest], np.linspace(0, 1, bands)))[1:]
        edges = np.array([lowest, np.nextafter(lowest, np.inf), *above])
        shown = np.array([lowest, lowest, *above])
    else:
        edges = shown = np.unique(np.quantile(values, np.linspace(0, 1, bands + 1)))
    names = [f"{a:.10g} to {b:.10g}" if a < b else f"{a:.10g}" for a, b in pairwise(shown)]
    cut: pd.Series = pd.cut(values, list(edges), labels=names, include_lowest=True)
    return cut


def gate_similarity(folder: Path | str, **which: Any) -> pd.DataFrame:
    """Cosine of two tasks' gate weights, averaged over rows: task by task; errors as of `gate_weights`."""
    weights = {task: values.to_numpy() for task, values in weights_by_task(folder, **which).items()}
    unit = {task: values / np.linalg.norm(values, axis=1, keepdims=True) for task, values in weights.items()}
    return pd.DataFrame({a: {b: (unit[a] * unit[b]).sum(1).mean() for b in unit} for a in unit})
