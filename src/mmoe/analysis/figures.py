"""The figures that every run gets when it ends."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from mmoe import runs
from mmoe.analysis.curve_figures import (
    plot_calibration,
    plot_precision_recall,
    plot_roc,
    plot_training_curves,
)
from mmoe.analysis.gate_figures import plot_gate_distributions, plot_gate_weights
from mmoe.atomic import write
from mmoe.evaluation import keeps_rows
from mmoe.training.gate_statistics import blank_rows


def plots_of(folder: Path, trust: Sequence[str] = ()) -> dict[str, Callable[[Path], Figure]]:
    """By name, what draws each figure that a run which has ended should have.

    A run with replicas gets its training curves alone, a method without gates no figures of them, and a run
    without test rows (limit_test_batches=0) none of their predictions.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    config, schema = runs.read(folder, ("inputs", "model", "data"), trust)
    plots: dict[str, Callable[[Path], Figure]] = {}
    if len(runs.read_frame(folder, "history.csv")):  # else it ended before a validation
        plots["training_curves"] = plot_training_curves
    if config.replicas > 1:
        return plots
    if any(task.is_binary for task in schema.tasks) and (folder / "predictions.parquet").exists():
        plots |= {"roc": plot_roc, "precision_recall": plot_precision_recall, "calibration": plot_calibration}
    rows = blank_rows(schema)
    if not keeps_rows(config):
        return plots
    if runs.load_network(folder, trust=trust)(rows.codes, rows.numerics).gates.shape[-1]:
        plots["gate_weights"] = partial(plot_gate_weights, trust=trust)
        plots["gate_distributions"] = partial(plot_gate_distributions, trust=trust)
    return plots


def write_all(folder: Path, trust: Sequence[str] = ()) -> dict[str, Figure]:
    """Write the main figures of a run that has ended to its figures/, as PNG.

    Args:
        folder: the run folder.
        trust: packages of your own whose classes the run is built from.

    Returns:
        The figures by name.
    """
    figures = {name: plot(folder) for name, plot in plots_of(folder, trust).items()}
    for name, figure in figures.items():
        write(folder / f"figures/{name}.png", partial(figure.savefig, dpi=150))
    return figures
