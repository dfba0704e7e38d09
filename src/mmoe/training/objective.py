"""What is minimised.

B batch, C categorical columns, M numeric columns, T tasks, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mmoe.arguments import check_finite
from mmoe.data.schema import Task
from mmoe.errors import UserError
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


class LabelScale(nn.Module):
    """Labels of regressions in deviations from their mean; those of binary tasks stay as they are.

    Shape:
        labels: [B, T]; output: [B, T].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor([getattr(task, name) for task in tasks], dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the scale but do not cast it: a half has too few digits for it."""
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    def forward(self, labels: Tensor) -> Tensor:
        """Scale labels, which are near their mean, without loss of digits."""
        return ((labels.float() - self.mean) / self.std).to(labels.dtype)


class Objective(nn.Module):
    """A network and its loss: the weighted sum over tasks of their mean losses.

    The loss of a row is the binary cross-entropy of a binary task, and of a regression the squared error of
    its logit, for the label scaled by the task's `mean` and `std`. A method's `penalty()`, as that of
    `L2Constrained`, is added. The loss of an `Ensemble` is the sum of those that its members have alone.

    Args:
        network: from codes and numerics to logits and gates.
        tasks: in the order of the labels.
        task_weights: weight in the loss by task name; a task that is not named weighs 1.

    Raises:
        UserError: a weight is negative, not a number, or names no task; all are 0; or they have no names.

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
        if not isinstance(task_weights, Mapping | None):
            raise UserError(f"task_weights={task_weights}: must be numbers by the names of tasks")
        weights, names = dict(task_weights or {}), [task.name for task in tasks]
        for name, weight in weights.items():
            if name not in names:
                raise UserError(f"task_weights.{name}: must be one of the tasks {', '.join(names)}")
            check_finite(0, **{f"task_weights.{name}": weight})
        self.network = network
        self.tasks = list(tasks)
        kinds = {task.kind for task in tasks}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        values = torch.tensor([float(weights.get(name, 1.0)) for name in names])
        if not values.isfinite().all() or not values.any():
            raise UserError(
                f"task_weights={weights}: must be above 0 for a task, and numbers that float32 has"
            )
        self.register_buffer("task_weights", values, persistent=False)
        binary = torch.tensor([task.is_binary for task in tasks])
        self.register_buffer("is_binary", binary, persistent=False)
        self.scale = LabelScale(tasks) if any(task.is_scaled for task in tasks) else None

    def forward(self, codes: Tensor | Entries, numerics: Tensor, labels: Tensor) -> Outcome:
        """Loss, logits and gate weights of a batch."""
        logits, gates = self.network(codes, numerics)
        labels = self.scale(labels) if self.scale else labels
        # In training the logits are those of every member of an ensemble, [M, B, T].
        members = logits.shape[0] if logits.ndim > labels.ndim else 1
        loss = len(self.tasks) * members * self._error(logits, labels.expand_as(logits))
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
