"""The figures that every run gets when it ends."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from mmoe import report, runs
from mmoe.analysis.curve_figures import (
    plot_calibration,
    plot_precision_recall,
    plot_roc,
    plot_training_curves,
)
from mmoe.analysis.gate_figures import plot_gate_distributions, plot_gate_weights
from mmoe.analysis.rows import scored
from mmoe.atomic import write


def write_all(folder: Path) -> dict[str, Figure]:
    """Write the main figures of a run that has ended to its figures/, as PNG.

    A run with replicas gets its training curves alone, a method without gates no figures of them.

    Returns:
        The figures by name.
    """
    config, schema = runs.read(folder)
    plots: dict[str, Callable[[Path], Figure]] = {}
    if (folder / "history.csv").stat().st_size > 1:  # else it ended before a validation
        plots["training_curves"] = plot_training_curves
    if config.replicas == 1 and any(task.is_binary for task in schema.tasks):
        plots |= {"roc": plot_roc, "precision_recall": plot_precision_recall, "calibration": plot_calibration}
    if config.replicas == 1 and report.gate_column(schema.tasks[0], 0) in scored(folder):
        plots |= {"gate_weights": plot_gate_weights, "gate_distributions": plot_gate_distributions}
    figures = {name: plot(folder) for name, plot in plots.items()}
    for name, figure in figures.items():
        write(folder / f"figures/{name}.png", partial(figure.savefig, dpi=150))
    return figures
