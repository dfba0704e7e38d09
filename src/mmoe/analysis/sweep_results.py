"""Compare the runs of a sweep: mean metrics by the options that differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmoe.analysis.drawing import COLOURS, LINES, MARKERS, fit_name, metric_name, panels, slant_names
from mmoe.analysis.sweep_runs import LIGHTGBM, sweep_runs
from mmoe.errors import UserError
from mmoe.intervals import half_interval

MONITORED = "(monitored)"  # temporary column to sort by; no config key has parentheses


def sweep_table(folder: Path | str) -> pd.DataFrame:
    """Average the runs below `folder` over seeds: one line for each combination of options that differ.

    For each task's main metric on validation and test rows, the table has the mean and, as `±`, half its 95 %
    interval (nan for one seed). The best line by the monitored metric comes first. If metrics.json lacks that
    metric (such as `train/loss`), the lines keep the order of the runs. LightGBM comes last, because its
    validation metrics cannot be compared with those of the runs: its number of trees is chosen for each task.
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
        table = table.sort_values(MONITORED, ascending=not frame.attrs["larger_is_better"])
        table = table.drop(columns=MONITORED)
    if "model" in table:
        table = table.sort_values("model", key=lambda names: names == LIGHTGBM, kind="stable")
    table = table.reset_index(drop=True)
    order = "best on the validation rows first" if monitor in frame else "in the order of the runs"
    order += ", LightGBM last" if frame.attrs["has_lightgbm"] else ""
    table.attrs = frame.attrs | {"order": order}
    return table


def plot_sweep(folder: Path | str, key: str | None = None, split: str = "test") -> Figure:
    """Draw each task's main metric against a config key: every seed, and the mean with its 95 % interval.

    `key`, such as `model.num_experts`, is by default the first that differs. If other keys differ too, each
    combination of their values has its own line. LightGBM is a horizontal line, unless `key` is `model`.
    `split` is `test` or `val`.

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
    is_baseline = (frame["run"] == LIGHTGBM) & (key != "model")
    baseline, runs = frame[is_baseline], frame[~is_baseline]
    # Names, such as those of methods, are ordered as in the table.
    in_order = [value for value in sweep_table(folder)[key].unique() if isinstance(value, str)]
    texts = [value for value in in_order if (runs[key] == value).any()]
    values = sorted(set(runs[key]) - set(texts)) + texts
    others = [name for name in varied if name != key and runs[name].nunique() > 1]
    lines = list(runs.groupby(others, sort=False)) if others else [((), runs)]
    tasks = frame.attrs["tasks"]
    has_intervals = len(runs) > len(runs.drop_duplicates(varied))  # some line has two seeds
    step = min(0.1, 0.6 / len(lines))  # between the points of two lines at one value
    figure, all_axes = panels(len(tasks), width=3.9, height=3.3)
    for axes, (task, metric) in zip(all_axes, tasks.items(), strict=True):
        column = f"{split}/{task}/{metric}"
        for number, (setting, part) in enumerate(lines):
            shift = (number - (len(lines) - 1) / 2) * step
            found = {i + shift: part.loc[part[key] == value, column] for i, value in enumerate(values)}
            label = _setting_name(others, setting, "mean, 95 % interval" if has_intervals else "one seed")
            # A line from one name to the next, such as from one method to another, would make no sense.
            is_joined = not any(isinstance(value, str) for value in part[key])
            _draw_runs(axes, found, number if others else None, is_joined, has_intervals, label)
        if len(baseline):
            _draw_baseline(axes, baseline[column])
        axes.set_xticks(range(len(values)), [fit_name(value) for value in values])
        if any(len(str(value)) > 6 for value in values):
            slant_names(axes)
        axes.set(title=fit_name(task), xlabel=_short(key), ylabel=f"{split} {metric_name(metric)}")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    if others or has_intervals or len(baseline):
        entries = zip(*all_axes[0].get_legend_handles_labels(), strict=True)
        handles, names = zip(*sorted(entries, key=lambda entry: entry[1] == LIGHTGBM), strict=True)
        inches = 0.8 + 0.085 * max(len(line) for name in names for line in name.split("\n"))
        columns = max(1, int(figure.get_figwidth() / inches))
        figure.legend(handles, names, loc="outside lower center", ncols=columns)
    return figure


def _draw_runs(
    axes: Axes,
    found: Mapping[float, pd.Series],
    number: int | None,
    is_joined: bool,
    has_intervals: bool,
    label: str,
) -> None:
    """Draw the metrics of one setting by their place on the x axis.

    `number` is the index of the setting; None if there is only one.
    """
    groups = {x: group for x, group in found.items() if len(group)}
    for x, group in groups.items():
        is_first = has_intervals and not number and x == next(iter(groups))  # one entry in the legend
        axes.plot(
            [x] * len(group), group, "o", markersize=5, mfc="none", mec="0.45",
            label="one seed" if is_first else None,
        )  # fmt: skip
    style = number or 0
    axes.errorbar(
        list(groups), [group.mean() for group in groups.values()],
        [half_interval(group) if len(group) > 1 else 0.0 for group in groups.values()],
        linestyle=LINES[style % 4] if is_joined else "", marker=MARKERS[style % 4], ms=4,
        color="black" if number is None else COLOURS[(style + style // 4) % 4],
        capsize=4 * has_intervals, label=label,
    )  # fmt: skip


def _draw_baseline(axes: Axes, values: pd.Series) -> None:
    """Draw the mean of LightGBM as a dashed line, and its interval as a band."""
    mean, half = values.mean(), half_interval(values)
    axes.axhline(mean, color="0.4", linestyle="--", linewidth=1, label=LIGHTGBM)
    if len(values) > 1:
        axes.axhspan(mean - half, mean + half, color="0.4", alpha=0.15, linewidth=0)


def _setting_name(keys: Sequence[str], values: Sequence[Any], name_without_keys: str) -> str:
    """Name a setting in a legend, without options that its model does not have."""
    if not keys:
        return name_without_keys
    pairs = [f"{_short(key)} {value}" for key, value in zip(keys, values, strict=True) if value != "-"]
    return fit_name(", ".join(pairs) or "other models", 40)


def _short(key: str) -> str:
    """The last part of a config key, in words."""
    return key.split(".")[-1].replace("num_", "number of ").replace("_", " ")
