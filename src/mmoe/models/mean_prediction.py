"""The mean prediction of several networks or experts for the same rows.

M members, T tasks, L logits of all tasks, W logits of a task.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmoe.errors import ArgumentError
from mmoe.tasks import Binary

# Averages the predictions of a task, such as `Binary.average`: it maps the members' logits [M, ..., W], and
# their weights [M, ..., 1] or None, to logits [..., W].
Average = Callable[[Tensor, Tensor | None], Tensor]


class MeanPrediction:
    """Average the members' predictions of each task.

    Args:
        task_outputs: the number of logits of each task.
        averages: the function that averages the predictions of each task. None: all tasks are binary.

    Raises:
        ArgumentError: `averages` does not have a function for each task, or is None although a task has
            several logits.

    Shape:
        logits: [M, ..., L]; weights: [M, ..., T], which sum to 1 over M, or None: all are equal; output:
        the logits [..., L] of the mean predictions.
    """

    def __init__(self, task_outputs: Sequence[int], averages: Sequence[Average] | None = None) -> None:
        self.widths = list(task_outputs)
        if averages is None and max(self.widths) > 1:
            raise ArgumentError(f"averages: must be given for tasks with {max(self.widths)} logits")
        self.averages = [Binary.average] * len(self.widths) if averages is None else list(averages)
        if len(self.averages) != len(self.widths):
            raise ArgumentError(f"averages: must be {len(self.widths)} functions, one for each task")
        self.is_uniform = len(set(self.averages)) == 1 and max(self.widths) == 1

    def __call__(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.is_uniform:
            return self.averages[0](logits, weights)
        own = torch.split(logits, self.widths, dim=-1)
        shares = [None] * len(own) if weights is None else torch.split(weights, 1, dim=-1)
        parts = zip(self.averages, own, shares, strict=True)
        return torch.cat([average(values, share) for average, values, share in parts], dim=-1)
