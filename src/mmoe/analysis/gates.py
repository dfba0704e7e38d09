"""Gate weights of each task and expert: over all rows, by subgroup, and compared between tasks.

`which` are the arguments of `Run.outputs`: `split`, `checkpoint` and `replica`. A model without gates raises
UserError.

N rows, T tasks, E experts.
"""

from collections.abc import Sequence
from functools import partial
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
from mmoe.analysis.subgroups import subgroups
from mmoe.run import Run, load


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
