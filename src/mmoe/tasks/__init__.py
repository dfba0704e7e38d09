"""Tasks: what a network learns to predict. Each kind of label has a class.

L logits: those of the first task, then those of the second, and so on.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mmoe.checks import fields as check
from mmoe.errors import ArgumentError
from mmoe.tasks.binary import Binary
from mmoe.tasks.count import Count
from mmoe.tasks.multiclass import Multiclass
from mmoe.tasks.regression import Regression
from mmoe.tasks.serialization import KINDS
from mmoe.tasks.task import Task

__all__ = ["KINDS", "Binary", "Count", "Multiclass", "Regression", "Task"]


def logit_columns(tasks: Sequence[Task]) -> list[slice]:
    """The logits of each task among all L logits."""
    ends = accumulate((task.num_outputs for task in tasks), initial=0)
    return [slice(start, end) for start, end in pairwise(ends)]


def logit_names(tasks: Sequence[Task]) -> list[str]:
    """The name of the task that each of the L logits belongs to."""
    return [task.name for task in tasks for _ in range(task.num_outputs)]


def predictions_of(tasks: Sequence[Task], logits: Tensor) -> Tensor:
    """Turn logits [..., L] into probabilities, or values in the label's unit: [..., L] in float64."""
    columns = zip(tasks, logit_columns(tasks), strict=True)
    return torch.cat([task.predict(logits[..., own]) for task, own in columns], dim=-1)


def validation_metrics(tasks: Sequence[Task]) -> dict[str, bool]:
    """Names of all validation metrics, and whether larger values are better."""
    return {f"val/{t.name}/{name}": larger for t in tasks for name, larger in t.metric_names.items()}


def default_monitor(tasks: Sequence[Task]) -> str:
    """The validation metric that chooses the best epoch by default: the main metric of the main task."""
    return f"val/{tasks[0].name}/{tasks[0].main_metric}"


def with_groups(tasks: Sequence[Task], group_by: str) -> list[Task]:
    """The tasks; the binary ones also have the metric `grouped_auroc`, over the groups in a column.

    Raises:
        ArgumentError: no task is binary, or `group_by` is not text.
    """
    if not any(task.probability_column for task in tasks):
        raise ArgumentError(f"group_by={group_by}: needs a binary task")
    column = check.text("group_by", group_by)
    return [replace(task, group_by=column) if task.probability_column else task for task in tasks]


def gate_column(task: Task, expert: int) -> str:
    """Name the column that holds a task's gate weights for one expert."""
    return f"{task.name}_gate_{expert}"
