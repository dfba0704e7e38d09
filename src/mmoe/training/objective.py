"""The loss: the weighted sum of the tasks' losses.

B batch, P level slots of a row, M numeric columns, T tasks, L logits of all tasks, E experts, K members with
a loss: see `OutputOfMembers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_finite
from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.errors import ArgumentError
from mmoe.models.esmm import funnel_of
from mmoe.models.network import Network, OutputOfMembers
from mmoe.tasks import Task, logit_columns


class LossAndOutput(NamedTuple):
    """The output of an objective.

    Shape:
        loss: a scalar. logits: [B, L]. gates: [B, T, E]; E is 0 for a method without gates.
    """

    loss: Tensor
    logits: Tensor
    gates: Tensor


class TaskLosses(NamedTuple):
    """The output of an objective with `by_task` in training.

    Shape:
        losses: [T], the loss of each task times its weight. logits, gates: see `LossAndOutput`. penalty: a
        scalar, 0 for a model without one.
    """

    losses: Tensor
    logits: Tensor
    gates: Tensor
    penalty: Tensor


def loss_weights(known: Tensor | None, weights: Tensor | None) -> Tensor | None:
    """Weights of labels in the loss [..., B, T]: 0 if a label is unknown. None: all are 1."""
    if known is None:
        return weights
    return known.float() if weights is None else weights * known


class Objective(nn.Module):
    """A network and its loss: the sum over tasks of each task's weight times its loss.

    The loss of a task is the weighted mean of `Task.losses` over its known labels:
    sum(weight x known x loss) / sum(weight x known). It is 0 for a batch without a known label.

    If the model has a penalty, like `L2Constrained`, it is added. An `ESMM` has the loss of joint
    probabilities. The loss of an `Ensemble` is the sum of its members' losses, and that of `ExpertHeads` the
    sum of the losses of the output and of the experts.

    Args:
        network: the inputs and the model.
        tasks: the tasks, in the order of the label columns.
        task_weights: weights by task name; 1 for the others.
        by_task: whether the output in training is `TaskLosses`, for a balancing strategy.

    Raises:
        ArgumentError: a weight is negative, not finite, or names no task, or all weights are 0.

    Shape:
        levels: [B, P]; numbers: [B, M]; labels, known, weights: [B, T]; sparse: see `Batch`; totals: [T], the
        sum of weight x known over the rows of all processes, divided by the number of processes, or None for
        the sum over the rows of this batch.
        output: a `LossAndOutput`.
    """

    task_weights: Tensor

    def __init__(
        self,
        network: Network,
        tasks: Sequence[Task],
        task_weights: Mapping[str, float] | None = None,
        by_task: bool = False,
    ) -> None:
        super().__init__()
        self.by_task = by_task
        if not isinstance(task_weights, Mapping | None):
            raise ArgumentError(f"task_weights={task_weights}: must map names of tasks to numbers")
        weights, names = dict(task_weights or {}), [task.name for task in tasks]
        for name, weight in weights.items():
            if name not in names:
                raise ArgumentError(f"task_weights.{name}: must be one of the tasks {', '.join(names)}")
            check_finite(0, **{f"task_weights.{name}": weight})
        self.network = network
        self.has_penalty = getattr(network.model, "has_penalty", False)
        self.has_funnel = self._funnel is not None
        self.tasks = list(tasks)
        self.columns = logit_columns(tasks)
        values = torch.tensor([float(weights.get(name, 1.0)) for name in names])
        if not values.isfinite().all() or not values.any():
            raise ArgumentError(f"task_weights={weights}: must be finite as float32, and one must be above 0")
        self.register_buffer("task_weights", values, persistent=False)
        kinds = {type(task) for task in tasks}
        # Where a kind has one function for all its tasks, one call takes a fraction of the time of many.
        self.mean_loss = kinds.pop().mean_loss(self.tasks) if len(kinds) == 1 else None

    def forward(
        self,
        levels: Tensor,
        numbers: Tensor,
        labels: Tensor,
        known: Tensor | None = None,
        weights: Tensor | None = None,
        sparse: SparseMatrix | None = None,
        totals: Tensor | None = None,
    ) -> LossAndOutput | TaskLosses:
        # A custom network may take only levels and numbers.
        rows: tuple[Any, ...] = (levels, numbers) if sparse is None else (levels, numbers, sparse)
        penalty: Tensor | None = None
        if self.has_penalty:
            output, penalty = self.network.forward_with_penalty(*rows)
        else:
            output = self.network(*rows)
        logits, gates = output[:2]
        in_loss, num_members = logits, 1
        if isinstance(output, OutputOfMembers):
            in_loss, num_members = output.member_logits, len(output.member_logits)
        in_loss = self._funnel.joint_logits(in_loss) if self.has_funnel else in_loss
        labels, known = self.labels_in_loss(labels, known)
        factor = len(self.tasks) * num_members  # turns the mean over tasks and members into their sum
        row_weights = loss_weights(known, weights)
        separate = self.by_task and self.training
        if separate:
            loss = self._task_losses(in_loss, labels, row_weights, totals)
        elif row_weights is not None:
            loss = self._weighted_losses(in_loss, labels, row_weights, totals).sum()
        elif self.mean_loss:
            loss = factor * self.mean_loss(in_loss, labels.expand_as(in_loss), self.task_weights)
        else:
            loss = factor * (self._losses(in_loss, labels) * self.task_weights).mean()
        loss = loss if penalty is None or separate else loss + penalty
        if separate:
            return TaskLosses(loss, logits, gates, loss.new_zeros(()) if penalty is None else penalty)
        return LossAndOutput(loss, logits, gates)

    def labels_in_loss(self, labels: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The labels [..., B, T] that the loss is computed from, and which are known; see `ESMM`."""
        if self.has_funnel:
            labels, known = self._funnel.joint_labels(labels, known)
        return labels, known

    @property
    def _funnel(self) -> Any:
        """The `ESMM` whose joint probabilities are in the loss, if `has_funnel`."""
        return funnel_of(self.network.model)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every label, [..., B, T]."""
        labels = labels.expand(*logits.shape[:-1], -1)  # [..., B, T]
        losses = [
            task.losses(logits[..., own], labels[..., i])
            for i, (task, own) in enumerate(zip(self.tasks, self.columns, strict=True))
        ]
        return torch.stack(losses, dim=-1)

    def _task_losses(
        self, logits: Tensor, labels: Tensor, row_weights: Tensor | None, totals: Tensor | None
    ) -> Tensor:
        """The sum over the K members of each task's weighted mean over rows, [T]."""
        if row_weights is None:
            losses = self._losses(logits, labels).mean(-2) * self.task_weights  # [T] or [K, T]
        else:
            losses = self._weighted_losses(logits, labels, row_weights, totals).sum(-2)
        return losses.sum(0) if losses.ndim > 1 else losses

    def _weighted_losses(
        self, logits: Tensor, labels: Tensor, row_weights: Tensor, totals: Tensor | None
    ) -> Tensor:
        """The loss of every label, [..., B, T], divided so that the sum over rows is the weighted mean."""
        totals = row_weights.sum(-2) if totals is None else totals  # [T]
        # Without a known label, the sum is 0 and is divided by 1.
        shares = self.task_weights / torch.where(totals > 0, totals, 1.0)  # [T]
        return self._losses(logits, labels) * row_weights * shares
