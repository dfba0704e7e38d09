"""The figure of a sweep."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmoe.analysis import sweep
from mmoe.analysis.drawing import (
    metric_name,
    panels,
)
from mmoe.intervals import half_interval


def plot_compare(folder: Path | str, key: str | None = None, split: str = "test") -> Figure:
    """First metric of each task against what a sweep varies: every seed, and the mean with its 95 % interval.

    Args:
        folder: of the sweep.
        key: what to draw against, such as `model.num_experts`; by default the first that was varied.
        split: `test` or `val`.

    Raises:
        ValueError: as `sweep.runs_of`, or the key is none that was varied.
    """
    frame = sweep.runs_of(folder)
    key = key or [*frame.attrs["varied"], "run"][0]
    if key not in (*frame.attrs["varied"], "run"):
        raise ValueError(f"key={key}: must be one of {', '.join(frame.attrs['varied'] or ['run'])}")
    values = sorted(frame[key].unique(), key=lambda v: (isinstance(v, str), v))
    tasks = frame.attrs["tasks"]
    figure, every = panels(len(tasks), width=3.9 * len(tasks), height=3.3)
    for axes, (task, metric) in zip(every, tasks.items(), strict=True):
        groups = [frame.loc[frame[key] == value, f"{split}/{task}/{metric}"] for value in values]
        for i, group in enumerate(groups):
            axes.plot(np.full(len(group), i), group, "o", markersize=3.5, mfc="none", mec="0.55")
        means, halves = zip(*((group.mean(), half_interval(group)) for group in groups), strict=True)
        axes.errorbar(
            range(len(values)), means, np.nan_to_num(halves), fmt="-D", color="black", ms=4, capsize=4,
            label="mean, 95 % interval",
        )  # fmt: skip
        long = any(len(str(value)) > 6 for value in values)
        axes.set_xticks(range(len(values)), [str(value) for value in values], rotation=30 if long else 0)
        axes.set(
            title=task,
            xlabel=key.split(".")[-1].replace("num_", "number of ").replace("_", " "),
            ylabel=f"{split} {metric_name(metric)}",
        )
        axes.grid(alpha=0.3)
    every[0].legend()
    return figure
