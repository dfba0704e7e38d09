"""How much each task takes of each expert: over all rows, by subgroup, and compared with other tasks."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmoe import runs
from mmoe.analysis.rows import raw_column, scored


def gate_weights(folder: Path | str, **which: Any) -> pd.DataFrame:
    """Mean gate weight of each task (line) and expert (column).

    Args:
        folder: the run folder.
        which: `split`, `checkpoint` and `replica`, as of `scored`; so in all functions here.

    Raises:
        ValueError: the run's model has no gates.
    """
    return pd.DataFrame(
        {task: weights.mean() for task, weights in weights_by_task(folder, **which).items()}
    ).T


def weights_by_task(folder: Path | str, **which: Any) -> dict[str, pd.DataFrame]:
    """Of each task the weights [rows, experts]; errors as of `gate_weights`."""
    frame = scored(folder, **which)
    config, schema = runs.read(Path(folder))
    found = {}
    for task in schema.tasks:
        names = [name for name in frame if str(name).startswith(f"{task.name}_gate_")]
        if not names:
            raise ValueError(f"{folder}: its model ({config.model._target_.split('.')[-1]}) has no gates")
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
    given = frame[column] if column in frame else raw_column(folder, column, which.get("split", "test"))
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
        counts = values.astype(str).value_counts()
        kept = list(counts.index[:most])
        named = values.astype(str).where(values.astype(str).isin(kept), "(other)")
        return named.astype(pd.CategoricalDtype([*kept, *(["(other)"] if len(counts) > most else [])]))
    if isinstance(bands, int) and values.nunique() <= max(bands, 6):
        levels = sorted(values.unique())
        return values.astype(pd.CategoricalDtype(levels, ordered=True)).cat.rename_categories("{:g}".format)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bands + 1)) if isinstance(bands, int) else bands)
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    cut: pd.Series = pd.cut(values, list(edges), labels=names, include_lowest=True)
    return cut


def gate_similarity(folder: Path | str, **which: Any) -> pd.DataFrame:
    """Cosine of two tasks' gate weights, averaged over rows: task by task; errors as of `gate_weights`."""
    weights = {task: values.to_numpy() for task, values in weights_by_task(folder, **which).items()}
    unit = {task: values / np.linalg.norm(values, axis=1, keepdims=True) for task, values in weights.items()}
    return pd.DataFrame({a: {b: (unit[a] * unit[b]).sum(1).mean() for b in unit} for a in unit})
