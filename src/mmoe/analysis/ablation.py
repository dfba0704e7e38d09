"""Measure how much worse each task gets when an expert is masked.

N rows, T tasks, E experts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from mmoe.analysis.drawing import HATCHES, LIGHT, fit_name, metric_name, panels, rows_name
from mmoe.errors import UserError
from mmoe.models.masking import masked_expert
from mmoe.run import Run, compute_outputs, load
from mmoe.training.task_metrics import TaskMetrics


def expert_ablation(
    run: Run | Path | str, split: str = "test", checkpoint: str = "best", replica: int | None = None
) -> pd.DataFrame:
    """Compute how much worse each task's main metric gets when an expert is masked.

    The table has a row for each masked expert and a column for each task. Masking sets the expert's gate
    weight to 0 and renormalises the others, without training. In a PLE and an AdaTT, it masks only in the
    last level; the residual of an AdaTT keeps the expert. A gate of a DSelectK may give one expert all the
    weight. If this expert is masked, all weights become 0.

    Raises:
        UserError: the run's model has no gates, or only one expert.
    """
    run = load(run)
    baseline = run.outputs(split, checkpoint, replica)
    num_experts = baseline.gates.shape[-1]
    if num_experts < 2:
        raise UserError(f"{run.folder}: its model must have gates over 2 experts or more, has {num_experts}")
    network, rows = run.network(checkpoint, replica), run.rows(split, replica)
    metrics = TaskMetrics(run.schema.tasks)
    main_metrics = {task.name: task.main_metric for task in run.schema.tasks}
    signs = {t.name: 1 if t.METRICS[t.main_metric] else -1 for t in run.schema.tasks}

    def main_metric_values(logits: Tensor) -> dict[str, float]:
        values = metrics(split, logits, rows.labels, rows.known)
        return {task: values[f"{split}/{task}/{name}"].item() for task, name in main_metrics.items()}

    before, lost = main_metric_values(baseline.logits), []
    for expert in range(num_experts):
        with masked_expert(network, expert):
            masked = main_metric_values(compute_outputs(network, rows).logits)
        lost.append({task: sign * before[task] - sign * masked[task] for task, sign in signs.items()})
    return pd.DataFrame(lost, index=pd.RangeIndex(num_experts, name="expert"))


def plot_expert_ablation(run: Run | Path | str, **which: Any) -> Figure:
    """Draw `expert_ablation` as bars, with a panel for each metric, because metrics have different units."""
    run = load(run)
    table = expert_ablation(run, **which)
    metrics = list(dict.fromkeys(task.main_metric for task in run.schema.tasks))
    figure, all_axes = panels(len(metrics), width=2 + 0.75 * len(table), height=3.2, max_columns=1)
    for axes, metric in zip(all_axes, metrics, strict=True):
        tasks = [(i, task) for i, task in enumerate(run.schema.tasks) if task.main_metric == metric]
        width = 0.8 / len(tasks)
        for place, (i, task) in enumerate(tasks):
            positions = np.arange(len(table)) + (place - (len(tasks) - 1) / 2) * width
            axes.bar(
                positions, table[task.name], width, label=fit_name(task.name), color=LIGHT[i % 4],
                hatch=HATCHES[i % 4], edgecolor="black",
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(table)), [str(e) for e in table.index])
        axes.set(xlabel="masked expert", ylabel=f"{metric_name(metric)}, worse by")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(title="task", loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars
    figure.suptitle(f"Experts masked one by one, {rows_name(which)}")
    return figure
