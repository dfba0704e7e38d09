"""Weights of the tasks, and cosines of their gradients, by epoch."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmoe.analysis.drawing import draw_line, fit_name, panels
from mmoe.errors import UserError
from mmoe.run import Run, load

PREFIX = "balance/"


def balance_names(run: Run) -> list[str]:
    """The columns of the history that are about balancing."""
    return [name for name in map(str, run.history) if name.startswith(PREFIX)]


def balance(run: Run | Path | str) -> pd.DataFrame:
    """Return seed, epoch and step of each validation and replica, and the statistics of balancing.

    The statistics are means over the steps since the previous validation.

    There is a column `weight/<task>` for each task. If gradients were compared, there are also
    `cosine/<task>_<task>` for each pair of tasks, and `conflicting`, the share of steps in which two tasks
    had a negative cosine.

    Raises:
        UserError: the run neither balanced its tasks nor compared their gradients.
    """
    run = load(run)
    names = balance_names(run)
    if not names:
        rule = "has no balanced tasks; train with balance=..., or with balance.measure_every=10"
        raise UserError(f"{run.folder}: {rule}")
    table: pd.DataFrame = run.history[["seed", "epoch", "step", *names]]
    return table.rename(columns=lambda name: name.removeprefix(PREFIX))


def plot_balance(run: Run | Path | str) -> Figure:
    """Draw `balance` by epoch: the tasks' weights, and if they were measured, cosines and conflicts.

    The line is the mean and the band the range, over replicas and over the validations of an epoch.
    """
    run = load(run)
    table = balance(run)
    names = [name.removeprefix(PREFIX) for name in balance_names(run)]
    titles = {
        "weight": "weights of the tasks",
        "cosine": "cosine of the tasks' gradients",
        "conflicting": "share of steps with a negative cosine",
    }
    kinds = [kind for kind in titles if any(name.startswith(kind) for name in names)]
    figure, all_axes = panels(len(kinds), width=3.8, height=3.0)
    for axes, kind in zip(all_axes, kinds, strict=True):
        for i, name in enumerate(name for name in names if name.startswith(kind)):
            draw_line(axes, table, name, i, fit_name(name.partition("/")[2]))
        axes.set(title=titles[kind], xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if kind != "conflicting":
            axes.legend(fontsize="small")
    return figure
