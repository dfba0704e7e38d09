"""Quality of the probabilities for the test rows: ROC, precision and recall, calibration.

Only binary tasks with known labels of both classes have these curves.

N rows.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.integrate import trapezoid
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from mmoe.analysis.drawing import COLOURS, LINES, MARKERS, fit_name, legend_beside, panels
from mmoe.errors import UserError
from mmoe.intervals import wilson_interval
from mmoe.run import Run, load
from mmoe.training.checkpoints import check_replica


def roc(run: Run | Path | str, replica: int | None = None) -> dict[str, pd.DataFrame]:
    """Compute `false_positive_rate`, `true_positive_rate` and `threshold` for each binary task."""
    tables = {}
    for task, probability, label in _binary_tasks(run, replica):
        x, y, threshold = binary_roc(torch.tensor(probability), torch.tensor(label))
        columns = {"false_positive_rate": x, "true_positive_rate": y, "threshold": threshold}
        tables[task] = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    return tables


def plot_roc(run: Run | Path | str, replica: int | None = None) -> Figure:
    """Draw the ROC curve of each binary task."""
    figure, (axes,) = panels(1, width=4.2, height=4)
    for i, (task, table) in enumerate(roc(run, replica).items()):
        x, y = table["false_positive_rate"], table["true_positive_rate"]
        axes.plot(
            x, y, LINES[i % 4], color=COLOURS[i % 4], label=f"{fit_name(task)}: area {trapezoid(y, x):.4f}"
        )
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, test rows")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def precision_recall(run: Run | Path | str, replica: int | None = None) -> dict[str, pd.DataFrame]:
    """Compute `recall`, `precision` and `threshold` (nan for the last point) for each binary task."""
    tables = {}
    for task, probability, label in _binary_tasks(run, replica):
        p, r, threshold = binary_precision_recall_curve(torch.tensor(probability), torch.tensor(label))
        threshold = torch.cat([threshold, threshold.new_full((1,), torch.nan)])
        columns = {"recall": r, "precision": p, "threshold": threshold}
        tables[task] = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    return tables


def plot_precision_recall(run: Run | Path | str, replica: int | None = None) -> Figure:
    """Draw precision against recall for each binary task, and the share of positive labels as a thin line."""
    figure, (axes,) = panels(1, width=5.4, height=4)
    highest = 0.0  # precision, except for the few rows with the highest probabilities
    for i, (task, table) in enumerate(precision_recall(run, replica).items()):
        measured = table.iloc[:-1]  # the last point has no rows, and precision 1 by definition
        axes.plot(
            measured["recall"], measured["precision"], LINES[i % 4], color=COLOURS[i % 4],
            label=fit_name(task),
        )  # fmt: skip
        share = table["precision"].iloc[0]  # at the lowest threshold, all rows count as positive
        axes.axhline(share, linestyle=LINES[i % 4], color=COLOURS[i % 4], linewidth=0.7)
        highest = max(highest, measured.loc[measured["recall"] > 0.05, "precision"].max())
    axes.set(xlabel="recall", ylabel="precision (thin line: chance)", ylim=(0, min(1.02, 1.3 * highest)))
    axes.set_title("Precision and recall, test rows")
    axes.grid(alpha=0.3)
    legend_beside(axes)
    return figure


def calibration(run: Run | Path | str, bins: int = 10, replica: int | None = None) -> dict[str, pd.DataFrame]:
    """For each binary task, sort the rows by probability and cut them into at most `bins` groups.

    The groups have equal sizes, but rows of equal probability are in one group.

    The columns are `predicted` (mean probability), `observed` (share of positive labels), `rows`, and the
    limits `low` and `high` of Wilson's 95 % interval for the share.
    """
    tables = {}
    for task, probability, label in _binary_tasks(run, replica):
        group = np.searchsorted(np.sort(probability), probability) * bins // len(label)
        frame = pd.DataFrame({"predicted": probability, "observed": label}).groupby(group).mean()
        frame["rows"] = np.bincount(group, minlength=bins)[frame.index]
        frame["low"], frame["high"] = wilson_interval(frame["observed"], frame["rows"])
        tables[task] = frame
    return tables


def plot_calibration(run: Run | Path | str, bins: int = 10, replica: int | None = None) -> Figure:
    """Draw the calibration of each binary task in a panel with its own range, with the intervals as bars."""
    tables = calibration(run, bins, replica)
    figure, grid = panels(len(tables), width=3.8, height=3.6)
    for axes, (task, table) in zip(grid, tables.items(), strict=True):
        x, y = table["predicted"], table["observed"]
        largest = float(max(x.max(), y.max()))  # the probabilities of a rare label are far below 1
        axes.plot([0, largest], [0, largest], color="0.6", linewidth=0.8)
        axes.errorbar(
            x, y, [y - table["low"], table["high"] - y], marker=MARKERS[0], color=COLOURS[0], mfc="white",
            elinewidth=0.8, capsize=2,
        )  # fmt: skip
        axes.set(
            xlabel="mean predicted probability", ylabel="observed share of positives", title=fit_name(task)
        )
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"Calibration, test rows in at most {bins} groups\n(bars: 95 % intervals)", fontsize="medium"
    )
    return figure


def has_curves(run: Run) -> bool:
    """Whether a run without replicas has a task for which these curves can be drawn."""
    return bool(_tasks_with_curves(run, ""))


def _binary_tasks(run: Run | Path | str, replica: int | None) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The name, the probabilities [N] and the labels [N] of each binary task."""
    run = load(run)
    check_replica(run.config.replicas, replica)
    found = _tasks_with_curves(run, "" if replica is None else f"_{replica}")
    if not found:
        raise UserError(f"{run.folder}: has no binary task with labels of both classes")
    return found


def _tasks_with_curves(run: Run, suffix: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """As `_binary_tasks`; the columns of a replica end with `suffix`."""
    found = []
    for task in run.schema.tasks:
        if not task.probability_column:
            continue
        label = f"{task.name}_label"
        if label not in run.predictions:  # each replica has different rows
            label += suffix
        rows = run.predictions[[f"{task.probability_column}{suffix}", label]].dropna()
        labels = rows[label].to_numpy(np.int64)
        if 0 < labels.sum() < len(labels):
            found.append((task.name, rows.iloc[:, 0].to_numpy(), labels))
    return found
