"""How many ReLU units of each layer are 0 for all rows."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mmoe.analysis.drawing import LIGHT, panels, rows_name
from mmoe.errors import UserError
from mmoe.models.dead_units import dead_units_recorded
from mmoe.models.replicas import Replicas
from mmoe.run import Run, compute_outputs, load


def dead_units(
    run: Run | Path | str, split: str = "test", checkpoint: str = "best", replica: int | None = None
) -> pd.DataFrame:
    """Count the units of each ReLU that are 0 for all rows of `Run.rows`.

    The table has the names of the ReLU modules as its index `layer`, and the columns `units` and `dead`.

    Raises:
        UserError: the run's network has no ReLU, or it is an ensemble.
    """
    run = load(run)
    network, rows = run.network(checkpoint, replica), run.rows(split, replica)
    if any(isinstance(module, Replicas) for module in network.modules()):
        raise UserError(f"{run.folder}: its model is an ensemble, whose units cannot be counted")
    with dead_units_recorded(network) as dead:
        compute_outputs(network, rows)
    if not dead:
        raise UserError(f"{run.folder}: its network has no ReLUs; they come with activation=relu")
    counts = {name: {"units": mask.numel(), "dead": int(mask.sum())} for name, mask in dead.items()}
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("layer")


def plot_dead_units(run: Run | Path | str, **which: Any) -> Figure:
    """Draw the shares of `dead_units` as bars."""
    table = dead_units(run, **which)[::-1]  # the first layer stands on top
    figure, (axes,) = panels(1, width=5, height=1.2 + 0.35 * len(table))
    bars = axes.barh(table.index, table["dead"] / table["units"], color=LIGHT[0], edgecolor="black")
    labels = [f"{dead:,} of {units:,}" for units, dead in table.itertuples(index=False)]
    axes.bar_label(bars, labels, padding=3, fontsize="small")
    axes.set(xlim=(0, 1.25), xlabel="share of dead units", title=f"Dead units, {rows_name(which)}")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    return figure
