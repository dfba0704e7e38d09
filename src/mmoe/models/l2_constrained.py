"""One network per task, with a penalty on the distance between their weights.

Duong et al., ACL 2015; Ma et al., KDD 2018, section 6.1. T tasks, P parameters of one task's network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmoe.checks.arguments import check_finite
from mmoe.models.layers import SharedInputLinear, StackedLinear
from mmoe.models.network import Output
from mmoe.models.single_task import SingleTask
from mmoe.models.sparse_inputs import SparseInputs


class L2Constrained(SingleTask):
    """`SingleTask` with an L2 penalty that pulls the networks of all tasks towards each other.

    Args:
        strength: factor of the penalty (the paper's alpha); 0: no penalty. Other arguments: see `SingleTask`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        units: Sequence[int] = (64, 8),
        strength: float = 1e-3,
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        (strength,) = check_finite(0, strength=strength)
        super().__init__(num_inputs, num_tasks, units, activation, dropout, task_outputs)
        self.strength, self.has_penalty = strength, strength > 0

    def forward_with_penalty(self, x: Tensor | SparseInputs) -> tuple[Output, Tensor]:
        """The output, and `penalty`."""
        return self(x), self.penalty()

    def penalty(self) -> Tensor:
        """Return `strength` times the sum over pairs of tasks of ||theta_k - theta_l||^2.

        In the last layer, only the outputs that every task has are compared.
        """
        linear = [layer for layer in self.layers if isinstance(layer, SharedInputLinear | StackedLinear)]
        parts = [part for layer in linear[:-1] for part in layer.by_layer()]
        parts += [part[..., : min(self.task_logits.outputs)] for part in linear[-1].by_layer()]
        theta = torch.cat([part.flatten(1) for part in parts], dim=1)  # [T, P]
        # The squared distances of all pairs sum to T times the squared distances from the mean.
        return (
            self.strength * self.task_logits.num_tasks * (theta - theta.mean(0, keepdim=True)).square().sum()
        )
