"""Panels, heat maps and styles for all figures."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Tasks differ in all of these at once, so that figures are readable without colour.
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
HATCHES = ("", "///", "...", "xx")
COLOURS = ("#1b4965", "#d1495b", "#66a182", "#8d6a9f")
LIGHT = ("#9fb8c8", "#f0b8bf", "#c3dccb", "#d2c4d9")  # the same colours for areas
METRIC_NAMES = {
    "auroc": "AUROC", "grouped_auroc": "grouped AUROC", "mse": "MSE", "rmse": "RMSE", "mae": "MAE",
    "r2": "R²", "poisson_deviance": "Poisson deviance", "brier": "Brier score",
}  # fmt: skip
MAX_COLUMNS = 3  # more would make the text small where a page scales the figure to its width


def panels(
    count: int, width: float, height: float, share_y: bool = False, max_columns: int = MAX_COLUMNS
) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels of this size in inches, in rows of at most `max_columns`."""
    rows = math.ceil(count / max_columns)
    columns = math.ceil(count / rows)
    # pyplot would keep every figure in memory and choose a window system.
    figure = Figure(figsize=(max(width * columns, 3.6), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y).flatten()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def heat_map(axes: Axes, table: pd.DataFrame, label: str | None, largest: float | None = None) -> None:
    """Draw a table as grey cells, darker for larger numbers. A cell of the number `largest` is black."""
    values = table.to_numpy(float)
    largest = largest or float(values.max())
    image = axes.imshow(values, cmap="Greys", vmin=0, vmax=largest, aspect="auto")
    names = [str(name) for name in table.columns]
    axes.set_xticks(range(len(names)), names)
    if max(map(len, names)) > 8:
        slant_names(axes)
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    if values.shape[1] <= 16:
        for i, j in np.ndindex(*values.shape):
            dark = values[i, j] > 0.62 * largest
            axes.text(
                j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    if label:
        axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)


def slant_names(axes: Axes) -> None:
    """Turn the names below an axis, so that long ones do not overlap."""
    for tick in axes.get_xticklabels():
        tick.set(rotation=30, ha="right", rotation_mode="anchor")


def draw_line(axes: Axes, table: pd.DataFrame, column: str, style: int, label: str | None = None) -> None:
    """Draw the mean of a column for each epoch as a line, and its range as a band."""
    by_epoch = table.groupby("epoch")[column]
    mean, style = by_epoch.mean(), style % 4
    marker, colour = MARKERS[style] if len(mean) < 30 else "", COLOURS[style]
    axes.plot(mean.index, mean, LINES[style], marker=marker, color=colour, label=label, mfc="white")
    axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=LIGHT[style], alpha=0.5)


def fit_name(name: object, width: int = 20, max_lines: int = 3) -> str:
    """A name from the data, on at most `max_lines` lines of `width` characters.

    Dots replace the middle of a longer name, because long names often differ in their ends.
    """
    text = str(name)
    words = re.findall(r"[^\s_]*[\s_]+|[^\s_]+", text)  # a line may also end after an underscore
    lines = [""]
    for part in (word[i : i + width] for word in words for i in range(0, len(word), width)):
        if len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    if len(lines) > max_lines == 1:
        half = (width - 3) // 2
        lines = [f"{text[:half]}...{text[-half:]}"]
    elif len(lines) > max_lines:
        lines[max_lines - 2 : -1] = [f"{lines[max_lines - 2][: width - 3]}..."]
    # Matplotlib would read text between two dollar signs as a formula.
    return "\n".join(line.strip() for line in lines).replace("$", r"\$")


def legend_beside(axes: Axes) -> None:
    """Put a legend of the tasks to the right of the panels, where it covers no line."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, title="task", loc="outside right upper")


def metric_name(name: str) -> str:
    """Name a metric for an axis label."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def rows_name(which: Mapping[str, Any]) -> str:
    """Name the rows for a title, from the arguments of `Run.outputs`."""
    return f"{which.get('split', 'test')} rows"
