"""One network per task; the tasks share low-rank weights (Yang and Hospedales, ICLR 2017, Tucker form).

B batch, I inputs, O outputs, T tasks; P, Q and R are the ranks of inputs, outputs and tasks; L logits
of all tasks.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_matrix, check_widths
from mmoe.models.layers import activation_layers
from mmoe.models.network import Output
from mmoe.models.towers import TaskLogits


class FactorizedLinear(nn.Module):
    """T linear layers: W[t, i, o] = sum over p, q, r of core[p, q, r] inputs[i, p] outputs[o, q] tasks[t, r].

    Each rank is capped at the size of its dimension. W starts with the variance of `nn.Linear`, 1 / (3 I).

    Shape:
        x: [B, T, I], or [B, 1, I] if all tasks have the same input; output: [B, T, O].
    """

    def __init__(
        self, num_tasks: int, in_features: int, out_features: int, rank: int, task_rank: int
    ) -> None:
        super().__init__()
        p, q, r = min(rank, in_features), min(rank, out_features), min(task_rank, num_tasks)

        def uniform(variance: float, *shape: int) -> nn.Parameter:
            bound = math.sqrt(3 * variance)
            return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        self.inputs = uniform(1 / (3 * in_features), in_features, p)
        self.core = uniform(1 / p, p, q, r)
        self.outputs = uniform(1 / q, out_features, q)
        self.tasks = uniform(1 / r, num_tasks, r)
        self.bias = uniform(1 / (3 * in_features), num_tasks, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer of task t to x[:, t] without computing W."""
        core = torch.einsum("pqr,tr->tpq", self.core, self.tasks)
        x = torch.einsum("bti,ip->btp", x, self.inputs)
        x = torch.einsum("btp,tpq->btq", x, core)
        return torch.einsum("btq,oq->bto", x, self.outputs) + self.bias


class TensorFactorization(nn.Module):
    """One network per task; every layer is a `FactorizedLinear`.

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        units: widths of each network's hidden layers.
        rank: P and Q.
        task_rank: R.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and no gates.
    """

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        units: Sequence[int] = (64, 8),
        rank: int = 16,
        task_rank: int = 2,
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, rank, task_rank = check_integers(
            1, num_inputs=num_inputs, num_tasks=num_tasks, rank=rank, task_rank=task_rank
        )
        (units,) = check_widths(1, units=units)
        self.num_inputs = num_inputs
        self.task_logits = TaskLogits(num_tasks, task_outputs)
        self.layers = nn.Sequential()
        for i, o in pairwise([num_inputs, *units]):
            self.layers.append(FactorizedLinear(num_tasks, i, o, rank, task_rank))
            self.layers.extend(activation_layers(activation, dropout))
        self.layers.append(FactorizedLinear(num_tasks, units[-1], self.task_logits.widest, rank, task_rank))

    def forward(self, x: Tensor) -> Output:
        check_matrix(x, self.num_inputs)
        x = x.unsqueeze(1)  # [B, 1, I]
        return Output.without_gates(self.task_logits(self.layers(x)), self.task_logits.num_tasks)
