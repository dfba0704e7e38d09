"""What is minimised.

B batch, C categorical columns, M numeric columns, T tasks, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mmoe.checks import check_finite
from mmoe.data.schema import Task
from mmoe.models.ensemble import Ensemble
from mmoe.models.network import Network
from mmoe.models.sparse import Entries


class Outcome(NamedTuple):
    """What an objective gives for a batch.

    Shape:
        loss: a scalar. logits: [B, T]. gates: [B, T, E], E experts; none (E = 0) of a method without gates.
    """

    loss: Tensor
    logits: Tensor
    gates: Tensor


class Objective(nn.Module):
    """A network and its loss: the weighted sum over tasks of their mean losses.

    The loss of a row is the binary cross-entropy of a binary task and the squared error of a regression,
    whose prediction is the logit itself. A method's `penalty()`, as that of `L2Constrained`, is added.

    Args:
        network: from codes and numerics to logits and gates.
        tasks: in the order of the labels.
        task_weights: weight in the loss by task name; a task that is not named weighs 1.

    Raises:
        ValueError: a weight is negative, not a number, or names no task.

    Shape:
        codes: [B, C]; numerics: [B, M]; or what `Inputs.encode_once` made of both; labels: [B, T];
        output: an `Outcome`.
    """

    task_weights: Tensor
    is_binary: Tensor

    def __init__(
        self, network: Network, tasks: Sequence[Task], task_weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        weights, names = dict(task_weights or {}), [task.name for task in tasks]
        for name, weight in weights.items():
            if name not in names:
                raise ValueError(f"task_weights.{name}: must be one of the tasks {', '.join(names)}")
            check_finite(0, **{f"task_weights.{name}": weight})
        self.network = network
        self.tasks = list(tasks)
        kinds = {task.kind for task in tasks}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        values = torch.tensor([float(weights.get(name, 1.0)) for name in names])
        self.register_buffer("task_weights", values, persistent=False)
        binary = torch.tensor([task.is_binary for task in tasks])
        self.register_buffer("is_binary", binary, persistent=False)

    def forward(self, codes: Tensor | Entries, numerics: Tensor, labels: Tensor) -> Outcome:
        """Loss, logits and gate weights of a batch."""
        logits, gates = self.network(codes, numerics)
        # In training the logits are those of every member of an ensemble, [M, B, T].
        loss = len(self.tasks) * self._error(logits, labels.expand_as(logits))
        penalty = getattr(self.network.model, "penalty", None)
        loss = loss + penalty() if penalty else loss
        if isinstance(self.network.model, Ensemble) and logits.ndim > labels.ndim:
            logits = self.network.model.mean(logits)
        return Outcome(loss, logits, gates)

    def _error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of all weighted losses; what no task needs is not computed."""
        weights = self.task_weights
        if self.kind == "binary":
            return binary_cross_entropy_with_logits(logits, labels, weights)
        errors = mse_loss(logits, labels, reduction="none")
        if self.kind == "mixed":
            entropy = binary_cross_entropy_with_logits(logits, labels, reduction="none")
            errors = torch.where(self.is_binary, entropy, errors)
        return (errors * weights).mean()
