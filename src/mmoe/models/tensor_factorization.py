"""Task networks whose weights are one low-rank tensor (Yang and Hospedales, ICLR 2017, Tucker form).

B batch, I inputs, O outputs, T tasks; p, q, r the ranks of inputs, outputs and tasks.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.arguments import check_integers, check_matrix, check_widths
from mmoe.models.layers import activate
from mmoe.models.output import Output


class FactorizedLinear(nn.Module):
    """T linear layers with W[t] = sum over p, q, r of core[p, q, r] inputs[:, p] outputs[:, q] tasks[t, r].

    Ranks are cut to the sizes that they factorise. The product's weights start with the variance that
    `nn.Linear` has, 1 / (3 I).

    Shape:
        x: [B, T, I], or [B, 1, I] for all tasks; output: [B, T, O].
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
        """Apply the layer of task t to x[:, t], without forming its weight."""
        core = torch.einsum("pqr,tr->tpq", self.core, self.tasks)
        x = torch.einsum("bti,ip->btp", x, self.inputs)
        x = torch.einsum("btp,tpq->btq", x, core)
        return torch.einsum("btq,oq->bto", x, self.outputs) + self.bias


class TensorFactorization(nn.Module):
    """Task networks in which every layer is a `FactorizedLinear`.

    Args:
        num_inputs: I.
        num_tasks: T.
        units: widths of each network's hidden layers.
        rank: p and q.
        task_rank: r.
        activation: of hidden layers; a key of `layers.ACTIVATIONS`.
        dropout: share of hidden units set to 0 in training.

    Raises:
        UserError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and no gates.
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
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, rank, task_rank = check_integers(
            1, num_inputs=num_inputs, num_tasks=num_tasks, rank=rank, task_rank=task_rank
        )
        (units,) = check_widths(1, units=units)
        self.num_inputs = num_inputs
        self.layers = nn.Sequential()
        for i, o in pairwise([num_inputs, *units]):
            self.layers.append(FactorizedLinear(num_tasks, i, o, rank, task_rank))
            self.layers.extend(activate(activation, dropout))
        self.layers.append(FactorizedLinear(num_tasks, units[-1], 1, rank, task_rank))

    def forward(self, x: Tensor) -> Output:
        """Logits of a batch."""
        check_matrix(x, self.num_inputs)
        return Output.without_gates(self.layers(x.unsqueeze(1)).squeeze(-1))
