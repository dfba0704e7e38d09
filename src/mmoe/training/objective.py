"""The loss: the weighted sum of the tasks' losses.

B batch, C categorical columns, M numeric columns, T tasks, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mmoe.data.schema import Task
from mmoe.errors import ArgumentError, check_finite
from mmoe.models.ensemble import Ensemble
from mmoe.models.network import Network
from mmoe.models.sparse_inputs import SparseMatrix


class LossAndOutput(NamedTuple):
    """The output of an objective.

    Shape:
        loss: a scalar. logits: [B, T]. gates: [B, T, E]; E is 0 for a method without gates.
    """

    loss: Tensor
    logits: Tensor
    gates: Tensor


class LabelScale(nn.Module):
    """Standardise the labels of regressions. Labels of binary tasks do not change.

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
        """Move the scale without casting it, because float16 has too few digits."""
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    def forward(self, labels: Tensor) -> Tensor:
        """Standardise in float32, so that no digit is lost."""
        return ((labels.float() - self.mean) / self.std).to(labels.dtype)


class Objective(nn.Module):
    """A network and its loss: the weighted sum over tasks of the mean loss per row.

    The loss of a binary task is the binary cross-entropy. The loss of a regression is the squared error
    between its logit and the standardised label. If the model has a `penalty()`, like `L2Constrained`, it is
    added. The loss of an `Ensemble` is the sum of its members' losses. `tasks` have the order of the label
    columns, and `task_weights` are by task name.

    Raises:
        ArgumentError: a weight is negative, not finite, or names no task, or all weights are 0.

    Shape:
        levels: [B, C]; numbers: [B, M]; labels: [B, T]; sparse: see `Batch`; output: a `LossAndOutput`.
    """

    task_weights: Tensor
    is_binary: Tensor

    def __init__(
        self, network: Network, tasks: Sequence[Task], task_weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(task_weights, Mapping | None):
            raise ArgumentError(f"task_weights={task_weights}: must map names of tasks to numbers")
        weights, names = dict(task_weights or {}), [task.name for task in tasks]
        for name, weight in weights.items():
            if name not in names:
                raise ArgumentError(f"task_weights.{name}: must be one of the tasks {', '.join(names)}")
            check_finite(0, **{f"task_weights.{name}": weight})
        self.network = network
        self.tasks = list(tasks)
        kinds = {task.kind for task in tasks}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        values = torch.tensor([float(weights.get(name, 1.0)) for name in names])
        if not values.isfinite().all() or not values.any():
            raise ArgumentError(f"task_weights={weights}: must be finite as float32, and one must be above 0")
        self.register_buffer("task_weights", values, persistent=False)
        binary = torch.tensor([task.is_binary for task in tasks])
        self.register_buffer("is_binary", binary, persistent=False)
        self.scale = LabelScale(tasks) if any(task.is_scaled for task in tasks) else None

    def forward(
        self, levels: Tensor, numbers: Tensor, labels: Tensor, sparse: SparseMatrix | None = None
    ) -> LossAndOutput:
        # A custom network may take only levels and numbers.
        output = self.network(levels, numbers) if sparse is None else self.network(levels, numbers, sparse)
        logits, gates = output
        labels = self.scale(labels) if self.scale else labels
        # In training, an ensemble returns the logits of every member, [members, B, T].
        members = logits.shape[0] if logits.ndim > labels.ndim else 1
        # `_error` is the mean over members and tasks, and the loss is the sum over both.
        loss = len(self.tasks) * members * self._error(logits, labels.expand_as(logits))
        penalty = getattr(self.network.model, "penalty", None)
        loss = loss + penalty() if penalty else loss
        if isinstance(self.network.model, Ensemble) and logits.ndim > labels.ndim:
            logits = self.network.model.average(logits)
        return LossAndOutput(loss, logits, gates)

    def _error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean weighted loss over rows, members and tasks. Kinds without a task are not computed."""
        weights = self.task_weights
        if self.kind == "binary":
            return binary_cross_entropy_with_logits(logits, labels, weights)
        errors = mse_loss(logits, labels, reduction="none")
        if self.kind == "mixed":
            entropy = binary_cross_entropy_with_logits(logits, labels, reduction="none")
            errors = torch.where(self.is_binary, entropy, errors)
        return (errors * weights).mean()
