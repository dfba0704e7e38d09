"""Figures of the gates and of what the experts are worth."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mmoe import runs
from mmoe.analysis import gates
from mmoe.analysis.ablation import expert_ablation
from mmoe.analysis.drawing import (
    HATCHES,
    LIGHT,
    heat_map,
    metric_name,
    panels,
    rows_name,
)
from mmoe.training.tasks import METRICS


def plot_gate_weights(folder: Path | str, **which: Any) -> Figure:
    """Heat map of the mean gate weight of each task and expert."""
    table = gates.gate_weights(folder, **which)
    figure, (axes,) = panels(1, width=1.4 + 0.55 * len(table.columns), height=1.5 + 0.45 * len(table))
    heat_map(axes, table, "mean gate weight")
    axes.set(xlabel="expert", ylabel="task", title=f"Gate weights, {rows_name(which)}")
    return figure


def plot_gate_distributions(folder: Path | str, **which: Any) -> Figure:
    """Boxes of the gate weights over rows, of each expert and task (as figure 6 of the paper shows them)."""
    found = gates.weights_by_task(folder, **which)
    num_experts = next(iter(found.values())).shape[1]
    figure, (axes,) = panels(1, width=2 + 0.75 * num_experts, height=3.4)
    width = 0.8 / len(found)
    for i, (task, weights) in enumerate(found.items()):
        boxes = axes.boxplot(
            weights.to_numpy(), positions=np.arange(num_experts) + (i - (len(found) - 1) / 2) * width,
            widths=0.85 * width, whis=(5, 95), showfliers=False, patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.6},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor=LIGHT[i % 4], hatch=HATCHES[i % 4])
        boxes["boxes"][0].set_label(task)
    axes.set_xticks(np.arange(num_experts), [str(e) for e in range(num_experts)])
    axes.set(xlabel="expert", ylabel="gate weight", ylim=(0, None))
    axes.set_title(
        f"Gate weights over {rows_name(which)} (box: quartiles, whiskers: 5 and 95 %)", fontsize=10
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend(title="task")
    return figure


def plot_gate_weights_by(folder: Path | str, column: str, **options: Any) -> Figure:
    """Heat maps, one a task, of the mean gate weight of each expert in each subgroup of a column."""
    table = gates.gate_weights_by(folder, column, **options)
    tasks = [name for name in table.columns.get_level_values(0).unique() if name != "rows"]
    labels = [
        f"{name} ({count:,})"
        for name, count in zip(table.index, table["rows"].to_numpy().ravel(), strict=True)
    ]
    num_experts = table[tasks[0]].shape[1]
    figure, every = panels(
        len(tasks), width=2.2 + 0.08 * max(map(len, labels)) + 0.5 * num_experts * len(tasks),
        height=1.6 + 0.33 * len(table), share_y=True,
    )  # fmt: skip
    largest = float(table[tasks].to_numpy().max())
    for axes, task in zip(every, tasks, strict=True):
        part = pd.DataFrame(table[task]).set_axis(labels)
        heat_map(axes, part, "mean gate weight" if axes is every[-1] else None, largest)
        axes.set(xlabel="expert", title=task)
    every[0].set_ylabel(f"{column.replace('_', ' ')} (rows)")
    return figure


def plot_gate_similarity(folder: Path | str, **which: Any) -> Figure:
    """Heat map of the similarity of the tasks' gates."""
    table = gates.gate_similarity(folder, **which)
    size = 2.2 + 0.8 * len(table)
    figure, (axes,) = panels(1, width=size + 0.8, height=size)
    heat_map(axes, table, "cosine of gate weights, mean over rows", 1.0)
    axes.set(xlabel="task", ylabel="task", title="Similarity of gates")
    return figure


def plot_expert_ablation(folder: Path | str, **which: Any) -> Figure:
    """Bars of what each task loses when an expert is masked."""
    table = expert_ablation(folder, **which)
    schema = runs.read_schema(Path(folder))
    figure, (axes,) = panels(1, width=2 + 0.75 * len(table), height=3.2)
    width = 0.8 / len(table.columns)
    for i, task in enumerate(schema.tasks):
        metric = next(iter(METRICS[task.kind]))
        where = np.arange(len(table)) + (i - (len(table.columns) - 1) / 2) * width
        axes.bar(
            where, table[task.name], width, label=f"{task.name} ({metric_name(metric)})", color=LIGHT[i % 4],
            hatch=HATCHES[i % 4], edgecolor="black",
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(table)), [str(e) for e in table.index])
    axes.set(
        xlabel="masked expert",
        ylabel="metric lost",
        title=f"Experts masked one by one, {rows_name(which)}",
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend(title="task")
    return figure
