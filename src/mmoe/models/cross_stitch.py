"""Cross-stitch networks (Misra et al., CVPR 2016): task networks that learn how much to take from each other.

B batch, I inputs, T tasks, U width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.arguments import check_integers, check_probabilities, check_widths
from mmoe.models.layers import FanOut, StackedLinear, activate
from mmoe.models.output import Output
from mmoe.models.sparse import SparseInputs


class Stitch(nn.Module):
    """Each task's units become a learned combination of the same units of all tasks (equation 1).

    Shape:
        x: [B, T, U]; output: [B, T, U].
    """

    def __init__(self, num_tasks: int, own: float) -> None:
        super().__init__()
        others = (1 - own) / max(num_tasks - 1, 1)
        weight = torch.full((num_tasks, num_tasks), others).fill_diagonal_(own if num_tasks > 1 else 1.0)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Mix over tasks."""
        return torch.einsum("ts,bsu->btu", self.weight, x)


class CrossStitch(nn.Module):
    """Task networks with a cross-stitch unit behind each hidden layer.

    Args:
        num_inputs: I.
        num_tasks: T.
        units: widths of each network's hidden layers.
        own: weight that a task gives its own units at the start; the others share the rest.
        activation: of hidden layers; a key of `layers.ACTIVATIONS`.
        dropout: share of hidden units set to 0 in training.

    Raises:
        UserError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and no gates.
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
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        (units,) = check_widths(1, units=units)
        (own,) = check_probabilities(own=own)

        def follow() -> list[nn.Module]:
            return [*activate(activation, dropout), Stitch(num_tasks, own)]

        self.layers = nn.Sequential(FanOut(num_tasks, num_inputs, units[0]), *follow())
        for i, o in pairwise(units):
            self.layers.extend([StackedLinear(num_tasks, i, o), *follow()])
        self.layers.append(StackedLinear(num_tasks, units[-1], 1))

    def forward(self, x: Tensor | SparseInputs) -> Output:
        """Logits of a batch."""
        return Output.without_gates(self.layers(x).squeeze(-1))
