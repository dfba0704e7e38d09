"""The figure of a sweep."""

from pathlib import Path

from matplotlib.figure import Figure

from mmoe.analysis import sweep
from mmoe.analysis.drawing import COLOURS, LINES, MARKERS, metric_name, panels
from mmoe.errors import UserError
from mmoe.intervals import half_interval


def plot_compare(folder: Path | str, key: str | None = None, split: str = "test") -> Figure:
    """First metric of each task against what a sweep varies: every seed, and the mean with its 95 % interval.

    Where more is varied, each combination of the rest has a line of its own.

    Args:
        folder: of the sweep.
        key: what to draw against, such as `model.num_experts`; by default the first that was varied.
        split: `test` or `val`.

    Raises:
        UserError: as `sweep.runs_of`, or the key is none that was varied.
    """
    frame = sweep.runs_of(folder)
    varied = frame.attrs["varied"]
    key = key or varied[0]
    if key not in varied:
        raise UserError(f"key={key}: must be one of {', '.join(varied)}")
    values = sorted(frame[key].unique(), key=lambda v: (isinstance(v, str), v))
    others = [name for name in varied if name != key]
    lines = list(frame.groupby(others, sort=False)) if others else [((), frame)]
    tasks = frame.attrs["tasks"]
    figure, every = panels(len(tasks), width=3.9 * len(tasks), height=3.3)
    for axes, (task, metric) in zip(every, tasks.items(), strict=True):
        for style, (setting, part) in enumerate(lines):
            name = ", ".join(f"{k.split('.')[-1]} {v}" for k, v in zip(others, setting, strict=True))
            groups = {i: part.loc[part[key] == v, f"{split}/{task}/{metric}"] for i, v in enumerate(values)}
            groups = {i: group for i, group in groups.items() if len(group)}
            colour = COLOURS[style % 4] if others else "black"
            for i, group in groups.items():
                axes.plot([i] * len(group), group, "o", markersize=3.5, mfc="none", mec="0.55")
            axes.errorbar(
                list(groups), [group.mean() for group in groups.values()],
                [half_interval(group) if len(group) > 1 else 0.0 for group in groups.values()],
                linestyle=LINES[style % 4], marker=MARKERS[style % 4], color=colour, ms=4, capsize=4,
                label=name or "mean, 95 % interval",
            )  # fmt: skip
        long = any(len(str(value)) > 6 for value in values)
        axes.set_xticks(range(len(values)), [str(value) for value in values], rotation=30 if long else 0)
        label = key.split(".")[-1].replace("num_", "number of ").replace("_", " ")
        axes.set(title=task, xlabel=label, ylabel=f"{split} {metric_name(metric)}")
        axes.grid(alpha=0.3)
    every[0].legend()
    return figure
