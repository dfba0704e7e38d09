"""Adaptive information transfer (Xi et al., KDD 2021) for tasks that are the steps of a funnel.

B batch, I inputs, T tasks, H tower width, C candidates of the attention (the information from the step
before, then the step's own tower).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_finite, check_integers, check_widths
from mmoe.errors import ArgumentError, UserError
from mmoe.models.gating import softmax
from mmoe.models.layers import SharedInputLinear, StackedLinear, hidden_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.tasks import Binary, Task


class AITM(nn.Module):
    """A shared bottom and a tower per step; each step attends to its own tower and to the step before.

    Step t has a tower q_t. For the first step a_1 = q_1. For the others, with the information
    p_t = g_t(a_(t-1)) from the step before, a_t = sum over u in {p_t, q_t} of w_u h1(u), where w is the
    softmax of <h2(u), h3(u)> / sqrt(H). The probability is y_t = sigmoid(linear(a_t)). Each step needs the
    one before it, so the transfer, and only it, is a loop.

    The penalty is the paper's behavioral expectation calibrator: `calibration` times the mean over rows of
    the sum over steps of max(y_(t+1) - y_t, 0), because nobody reaches a step without the one before it.

    The paper's towers share embeddings of the columns; here they share a bottom network. The paper leaves
    open whether steps share h1, h2, h3 and g; here each step has its own, and all four are linear.

    Args:
        num_inputs, num_tasks: I and T.
        bottom_units: widths of the bottom network's layers.
        tower_units: widths of a tower's layers; the last is H.
        calibration: factor of the penalty (the paper's alpha, 0.6); 0: no penalty.
        steps: the names of all tasks in the order of the funnel; None: the order of the tasks.
        task_names: the names of the tasks; needed for `steps`.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and no gates.
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        bottom_units: Sequence[int] = (64,),
        tower_units: Sequence[int] = (16,),
        calibration: float = 0.6,
        steps: Sequence[str] | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
        task_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        bottom_units, tower_units = check_widths(1, bottom_units=bottom_units, tower_units=tower_units)
        (self.calibration,) = check_finite(0, calibration=calibration)
        self.has_penalty = self.calibration > 0 and num_tasks > 1
        names = list(task_names or map(str, range(num_tasks)))
        order = names if steps is None else list(steps)
        if sorted(order) != sorted(names):
            raise ArgumentError(f"steps={order}: must hold each of the tasks {', '.join(names)} once")
        self.num_tasks, h = num_tasks, tower_units[-1]
        self.step = nn.Buffer(torch.tensor([order.index(name) for name in names]), persistent=False)  # [T]
        self.bottom = nn.Sequential(
            SharedInputLinear(1, num_inputs, bottom_units[0]),
            *hidden_layers(1, bottom_units, activation, dropout),
        )
        self.towers = nn.Sequential(
            SharedInputLinear(num_tasks, bottom_units[-1], tower_units[0]),
            *hidden_layers(num_tasks, tower_units, activation, dropout),
        )
        self.transfers = nn.ModuleList(Transfer(h) for _ in range(num_tasks - 1))
        self.heads = StackedLinear(num_tasks, h, 1)

    @staticmethod
    def task_arguments(tasks: Sequence[Task]) -> Mapping[str, Any]:
        """The arguments that follow from the tasks.

        Raises:
            UserError: a task is not binary, or its label is known only `where` another task is positive.
        """
        columns = {task.column for task in tasks}
        for task in tasks:
            if not isinstance(task, Binary):
                raise UserError(f"data.tasks.{task.name}.kind={task.kind}: must be binary for model=aitm")
            if task.where in columns:
                rule = "must be left out for model=aitm, whose steps need a label in every row"
                raise UserError(f"data.tasks.{task.name}.where={task.where}: {rule}")
        return {"task_names": [task.name for task in tasks]}

    def forward(self, x: Tensor | SparseInputs) -> Output:
        logits = self._logits_by_step(x)
        return Output.without_gates(logits.index_select(1, self.step), self.num_tasks)

    def forward_with_penalty(self, x: Tensor | SparseInputs) -> tuple[Output, Tensor]:
        """The output, and the calibrator's penalty, a scalar."""
        logits = self._logits_by_step(x)
        excess = logits.sigmoid().diff(dim=1).relu()  # [B, T - 1]
        output = Output.without_gates(logits.index_select(1, self.step), self.num_tasks)
        return output, self.calibration * excess.mean(0).sum()

    def _logits_by_step(self, x: Tensor | SparseInputs) -> Tensor:
        """Logits [B, T] in the order of the funnel."""
        towers = self.towers(self.bottom(x).squeeze(1)).unbind(1)  # T times [B, H]
        found = [towers[0]]
        for transfer, tower in zip(self.transfers, towers[1:], strict=True):
            found.append(transfer(found[-1], tower))
        logits: Tensor = self.heads(torch.stack(found, dim=1))  # [B, T, 1]
        return logits.flatten(1)


class Transfer(nn.Module):
    """The AIT module between two steps: attention over the information from the step before and the tower.

    Shape:
        before, tower: [B, H]; output: [B, H].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.information = nn.Linear(width, width)
        self.projections = nn.Linear(width, 3 * width)  # values h1, queries h2, keys h3

    def forward(self, before: Tensor, tower: Tensor) -> Tensor:
        candidates = torch.stack([self.information(before), tower], dim=1)  # [B, C, H]
        values, queries, keys = self.projections(candidates).chunk(3, dim=-1)  # [B, C, H]
        attention = softmax((queries * keys).sum(-1) / math.sqrt(values.shape[-1]))  # [B, C]
        return torch.einsum("bc,bch->bh", attention, values)
