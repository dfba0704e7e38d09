"""What is minimised.

B batch, C categorical columns, M numeric columns, T tasks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mmoe.checks import check_finite
from mmoe.models.network import Network


class Objective(nn.Module):
    """A network and its loss: the weighted sum over tasks of the mean binary cross-entropy.

    A method's `penalty()`, such as that of `L2Constrained`, is added.

    Args:
        network: from codes and numerics to logits and gates.
        tasks: names, in the order of the labels.
        task_weights: weight in the loss by task name; a task that is not named weighs 1.

    Raises:
        ValueError: a weight is negative, not a number, or names no task.

    Shape:
        codes: [B, C]; numerics: [B, M]; labels: [B, T]; output: the loss, a scalar, and the logits [B, T].
    """

    task_weights: Tensor

    def __init__(
        self, network: Network, tasks: Sequence[str], task_weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        weights = dict(task_weights or {})
        for name, weight in weights.items():
            if name not in tasks:
                raise ValueError(f"task_weights.{name}: must be one of the tasks {', '.join(tasks)}")
            check_finite(0, **{f"task_weights.{name}": weight})
        self.network = network
        self.tasks = list(tasks)
        values = torch.tensor([float(weights.get(name, 1.0)) for name in tasks])
        self.register_buffer("task_weights", values, persistent=False)

    def forward(self, codes: Tensor, numerics: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch."""
        logits = self.network(codes, numerics).logits
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0)  # [T]
        loss = losses @ self.task_weights
        penalty = getattr(self.network.model, "penalty", None)
        return (loss + penalty() if penalty else loss), logits
