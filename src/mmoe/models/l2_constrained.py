"""Task networks whose weights are kept close (Duong et al., ACL 2015; Ma et al., KDD 2018, 6.2).

T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmoe.arguments import check_finite
from mmoe.models.layers import FanOut, StackedLinear
from mmoe.models.single_task import SingleTask


class L2Constrained(SingleTask):
    """`SingleTask` with the squared distance between the tasks' weights, times `strength`, in the loss.

    Args:
        num_inputs: I.
        num_tasks: T.
        units: widths of each network's hidden layers.
        strength: alpha; 0 is `SingleTask`.
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
        strength: float = 1e-3,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        (strength,) = check_finite(0, strength=strength)
        super().__init__(num_inputs, num_tasks, units, activation, dropout)
        self.num_tasks, self.strength = int(num_tasks), strength

    def penalty(self) -> Tensor:
        """`strength` times the sum over pairs of tasks of ||theta_k - theta_l||^2, to add to the loss."""
        linear = [layer for layer in self.layers if isinstance(layer, FanOut | StackedLinear)]
        weights = torch.cat([w.flatten(1) for layer in linear for w in layer.by_layer()], dim=1)  # [T, ...]
        # The distances of all pairs add up to T times the distances from the mean.
        return self.strength * self.num_tasks * (weights - weights.mean(0, keepdim=True)).square().sum()
