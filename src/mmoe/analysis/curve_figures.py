"""Figures of how training went, and of how good the probabilities are."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.integrate import trapezoid

from mmoe import runs
from mmoe.analysis import curves
from mmoe.analysis.drawing import (
    COLOURS,
    LIGHT,
    LINES,
    MARKERS,
    metric_name,
    panels,
)
from mmoe.errors import UserError
from mmoe.training.tasks import METRICS


def plot_training_curves(folder: Path | str) -> Figure:
    """Validation metrics of each task by epoch, and the effective number of experts; bands: all replicas.

    Raises:
        UserError: the run has no validation.
    """
    table = curves.training_curves(folder)
    if not len(table):
        raise UserError(f"{folder}: its history.csv must have an epoch, it is empty")
    schema = runs.read_schema(Path(folder))
    drawn = [(task, next(iter(METRICS[task.kind]))) for task in schema.tasks]
    gated = f"val/{schema.tasks[0].name}/effective_experts" in table
    figure, every = panels(len(drawn) + gated, width=3.4 * (len(drawn) + gated), height=3.0)
    for axes, (task, metric) in zip(every, drawn, strict=False):
        _line(axes, table, f"val/{task.name}/{metric}", 0)
        axes.set(title=task.name, ylabel=f"validation {metric_name(metric)}")
    if gated:
        for i, task in enumerate(schema.tasks):
            _line(every[-1], table, f"val/{task.name}/effective_experts", i, task.name)
        every[-1].set(title="gates", ylabel="effective experts, exp(H)")
        every[-1].legend(title="task")
    for axes in every:
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def plot_roc(folder: Path | str, replica: int | None = None) -> Figure:
    """The ROC curve of each binary task on the test rows."""
    figure, (axes,) = panels(1, width=4.2, height=4)
    for i, (task, table) in enumerate(curves.roc(folder, replica).items()):
        area = trapezoid(table["true_positive_rate"], table["false_positive_rate"])
        axes.plot(
            table["false_positive_rate"], table["true_positive_rate"], LINES[i % 4], color=COLOURS[i % 4],
            label=f"{task}: area {area:.4f}",
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, test rows")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def plot_precision_recall(folder: Path | str, replica: int | None = None) -> Figure:
    """Precision against recall of each binary task on the test rows."""
    figure, (axes,) = panels(1, width=4.2, height=4)
    for i, (task, table) in enumerate(curves.precision_recall(folder, replica).items()):
        axes.plot(table["recall"], table["precision"], LINES[i % 4], color=COLOURS[i % 4], label=task)
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title="Precision and recall, test rows")
    axes.grid(alpha=0.3)
    axes.legend(title="task", loc="lower left")
    return figure


def plot_calibration(folder: Path | str, bins: int = 10, replica: int | None = None) -> Figure:
    """Observed share of positive labels against predicted probability, in groups of equal size."""
    figure, (axes,) = panels(1, width=4.2, height=4)
    for i, (task, table) in enumerate(curves.calibration(folder, bins, replica).items()):
        axes.plot(
            table["predicted"], table["observed"], LINES[i % 4], marker=MARKERS[i % 4], color=COLOURS[i % 4],
            markerfacecolor="white", label=task,
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(xlabel="mean predicted probability", ylabel="observed share of positive labels")
    axes.set_title(f"Calibration, test rows in {bins} groups")
    axes.grid(alpha=0.3)
    axes.legend(title="task", loc="upper left")
    return figure


def _line(axes: Axes, table: pd.DataFrame, name: str, style: int, label: str | None = None) -> None:
    """Mean by epoch of one line a seed, with the range of the seeds."""
    by_epoch = table.groupby("epoch")[name]
    mean = by_epoch.mean()
    marker = MARKERS[style % 4] if len(mean) < 30 else ""
    axes.plot(
        mean.index, mean, LINES[style % 4], marker=marker, color=COLOURS[style % 4], label=label, mfc="white"
    )
    axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=LIGHT[style % 4], alpha=0.5)
