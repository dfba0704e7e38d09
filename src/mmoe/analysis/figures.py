"""Draw the figures that every run gets when it ends."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from mmoe.analysis.balance import balance_names, plot_balance
from mmoe.analysis.gates import plot_gate_distributions, plot_gate_weights
from mmoe.analysis.page import FIGURE_DPI
from mmoe.analysis.probabilities import has_curves, plot_calibration, plot_precision_recall, plot_roc
from mmoe.analysis.training_curves import plot_training_curves
from mmoe.atomic import write
from mmoe.run import Run


def plots_of(run: Run) -> dict[str, Callable[[Run], Figure]]:
    """Functions that draw a run's figures, by the figure's name. Replicas only have figures over epochs."""
    plots: dict[str, Callable[[Run], Figure]] = {}
    if len(run.history):  # it is empty if the run ended before its first validation
        plots["training_curves"] = plot_training_curves
    if balance_names(run):
        plots["balance"] = plot_balance
    if run.config.replicas > 1:
        return plots
    has_predictions = (run.folder / "predictions.parquet").exists()
    if has_predictions and has_curves(run):
        plots |= {"roc": plot_roc, "precision_recall": plot_precision_recall, "calibration": plot_calibration}
    if run.has_dataset and run.num_experts:
        plots |= {"gate_weights": plot_gate_weights, "gate_distributions": plot_gate_distributions}
    return plots


def has_all_figures(run: Run) -> bool:
    """Whether the run folder has all figures."""
    return all((run.folder / f"figures/{name}.png").exists() for name in plots_of(run))


def write_figures(run: Run) -> dict[str, Figure]:
    """Write a run's figures to figures/ as PNG, and return them by name."""
    figures = {name: plot(run) for name, plot in plots_of(run).items()}
    for name, figure in figures.items():
        write(run.folder / f"figures/{name}.png", partial(figure.savefig, dpi=FIGURE_DPI))
    return figures
