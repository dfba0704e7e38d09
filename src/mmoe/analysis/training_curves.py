"""Validation metrics by epoch."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmoe.analysis.drawing import draw_line, fit_name, legend_beside, metric_name, panels
from mmoe.errors import UserError
from mmoe.run import Run, load


def training_curves(run: Run | Path | str) -> pd.DataFrame:
    """Return the run's history.csv: the metrics of every validation and replica."""
    return load(run).history


def plot_training_curves(run: Run | Path | str) -> Figure:
    """Draw each task's main validation metric and its effective number of experts by epoch.

    A task whose metric could not be computed in any epoch has no panel. If no task's metric could be
    computed, every task has a panel.
    The line is the mean and the band the range, over replicas and over the validations of an epoch.
    """
    run = load(run)
    table = training_curves(run)
    if not len(table):
        raise UserError(f"{run.folder}: its history.csv is empty, because the run had no validation")
    tasks = run.schema.tasks
    measured = [task for task in tasks if table[f"val/{task.name}/{task.main_metric}"].notna().any()] or tasks
    has_gates = f"val/{tasks[0].name}/effective_experts" in table
    count = len(measured) + has_gates
    figure, all_axes = panels(count, width=3.6, height=3.0)
    for axes, task in zip(all_axes, measured, strict=False):
        metric = task.main_metric
        draw_line(axes, table, f"val/{task.name}/{metric}", tasks.index(task))  # as in the panel of the gates
        axes.set(title=fit_name(task.name), ylabel=f"validation {metric_name(metric)}")
    if has_gates:
        for i, task in enumerate(tasks):
            draw_line(all_axes[-1], table, f"val/{task.name}/effective_experts", i, fit_name(task.name))
        all_axes[-1].set(title="gates", ylabel="effective experts, exp(H)")
        legend_beside(all_axes[-1])
    for axes in all_axes:
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
