"""Compare the runs of a sweep: mean metrics by the options that differ."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mmoe.analysis.drawing import COLOURS, LINES, MARKERS, fit_name, metric_name, panels
from mmoe.analysis.sweep_runs import sweep_runs
from mmoe.errors import UserError
from mmoe.intervals import half_interval

MONITORED = "(monitored)"  # temporary column to sort by; no config key has parentheses


def sweep_table(folder: Path | str) -> pd.DataFrame:
    """Average the runs below `folder` over seeds: one line for each combination of options that differ.

    For each task's main metric on validation and test rows, the table has the mean and, as `±`, half its 95 %
    interval (nan for one seed). The best line by the monitored metric comes first. If metrics.json lacks that
    metric (such as `train/loss`), the lines keep the order of the runs.
    """
    frame = sweep_runs(folder)
    varied, monitor = frame.attrs["varied"], frame.attrs["monitor"]
    lines = []
    for values, group in frame.groupby(varied, dropna=False, sort=False):
        line = dict(zip(varied, values, strict=True))
        line |= {"seeds": len(group), "parameters": group["parameters"].iloc[0]}
        for split in ("val", "test"):
            for task, metric in frame.attrs["tasks"].items():
                name = f"{split}/{task}/{metric}"
                if name in group:
                    line |= {name: group[name].mean(), f"{name} ±": half_interval(group[name])}
        lines.append(line | ({MONITORED: group[monitor].mean()} if monitor in frame else {}))
    table = pd.DataFrame(lines)
    if monitor in frame:
        table = table.sort_values(MONITORED, ascending=not frame.attrs["larger_is_better"], ignore_index=True)
        table = table.drop(columns=MONITORED)
    table.attrs = frame.attrs | {"is_sorted": monitor in frame}
    return table


def plot_sweep(folder: Path | str, key: str | None = None, split: str = "test") -> Figure:
    """Draw each task's main metric against a config key: every seed, and the mean with its 95 % interval.

    `key`, such as `model.num_experts`, is by default the first that differs. If other keys differ too, each
    combination of their values has its own line. `split` is `test` or `val`.

    Raises:
        UserError: see `sweep_runs`, or the key does not differ.
    """
    frame = sweep_runs(folder)
    varied = frame.attrs["varied"]
    key = key or varied[0]
    if key not in varied:
        raise UserError(f"key={key}: must be one of {', '.join(varied)}")
    if not any(str(name).startswith(f"{split}/") for name in frame):
        raise UserError(f"{folder}: its runs have no {split} rows")
    values = sorted(frame[key].unique(), key=lambda v: (isinstance(v, str), v))
    others = [name for name in varied if name != key]
    lines = list(frame.groupby(others, sort=False)) if others else [((), frame)]
    tasks = frame.attrs["tasks"]
    has_intervals = len(frame) > len(frame.drop_duplicates(varied))  # some line has two seeds
    figure, all_axes = panels(len(tasks), width=3.9, height=3.3)
    for axes, (task, metric) in zip(all_axes, tasks.items(), strict=True):
        for style, (setting, part) in enumerate(lines):
            name = fit_name(
                ", ".join(f"{k.split('.')[-1]} {v}" for k, v in zip(others, setting, strict=True)), 40
            )
            column = f"{split}/{task}/{metric}"
            groups = {i: part.loc[part[key] == v, column] for i, v in enumerate(values)}
            groups = {i: group for i, group in groups.items() if len(group)}
            colour = COLOURS[style % 4] if others else "black"
            for i, group in groups.items():
                axes.plot([i] * len(group), group, "o", markersize=3.5, mfc="none", mec="0.55")
            # A line from one name to the next, such as from one method to another, would make no sense.
            line = "" if any(isinstance(values[i], str) for i in groups) else LINES[style % 4]
            axes.errorbar(
                list(groups), [group.mean() for group in groups.values()],
                [half_interval(group) if len(group) > 1 else 0.0 for group in groups.values()],
                linestyle=line, marker=MARKERS[style % 4], color=colour, ms=4,
                capsize=4 * has_intervals,
                label=name or ("mean, 95 % interval" if has_intervals else "one seed"),
            )  # fmt: skip
        rotation = 30 if any(len(str(value)) > 6 for value in values) else 0
        axes.set_xticks(range(len(values)), [fit_name(value) for value in values], rotation=rotation)
        label = key.split(".")[-1].replace("num_", "number of ").replace("_", " ")
        axes.set(title=fit_name(task), xlabel=label, ylabel=f"{split} {metric_name(metric)}")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
