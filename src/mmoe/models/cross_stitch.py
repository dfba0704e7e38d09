"""Cross-stitch networks (Misra et al., CVPR 2016): task networks that learn what to share.

B batch, I inputs, T tasks, S the tasks again, as sources of a weighted sum, U units of a layer, L
logits of all tasks.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_probabilities, check_widths
from mmoe.models.layers import SharedInputLinear, StackedLinear, activation_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.models.towers import TaskLogits


class Stitch(nn.Module):
    """A cross-stitch unit: each task's units become a learned weighted sum of all tasks' units (equation 1).

    Shape:
        x: [B, T, U]; output: [B, T, U].
    """

    def __init__(self, num_tasks: int, own: float) -> None:
        super().__init__()
        others = (1 - own) / max(num_tasks - 1, 1)
        weight = torch.full((num_tasks, num_tasks), others).fill_diagonal_(own if num_tasks > 1 else 1.0)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ts,bsu->btu", self.weight, x)


class CrossStitch(nn.Module):
    """One network per task, with a cross-stitch unit after each hidden layer.

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        units: widths of each network's hidden layers.
        own: initial weight of a task's own units; the other tasks share the rest equally.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and no gates.
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        units: Sequence[int] = (64, 8),
        own: float = 0.9,
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        (units,) = check_widths(1, units=units)
        (own,) = check_probabilities(own=own)
        self.task_logits = TaskLogits(num_tasks, task_outputs)
        self.layers = nn.Sequential(SharedInputLinear(num_tasks, num_inputs, units[0]))
        for i, o in pairwise([*units, self.task_logits.widest]):
            self.layers.extend([*activation_layers(activation, dropout), Stitch(num_tasks, own)])
            self.layers.append(StackedLinear(num_tasks, i, o))

    def forward(self, x: Tensor | SparseInputs) -> Output:
        return Output.without_gates(self.task_logits(self.layers(x)), self.task_logits.num_tasks)
