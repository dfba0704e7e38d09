"""Experts that predict every task themselves.

B batch, T tasks, E experts, H expert width, L logits of all tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.models.layers import StackedLinear
from mmoe.models.mean_prediction import Average, MeanPrediction
from mmoe.models.network import Output, OutputOfMembers


class ExpertHeads(nn.Module):
    """A linear head for each expert, and the mean of the experts' predictions, weighted by the gates.

    In training, every expert has its own loss, so the experts learn like the members of an ensemble. The loss
    of the mean trains the gates alone.

    Args:
        num_experts, num_inputs: E and H.
        task_outputs: the number of logits of each task.
        averages: see `MeanPrediction`.

    Shape:
        gates: [B, T, E]; experts: [B, E, H]; output: an `Output`. In training it is an `OutputOfMembers`,
        whose members are the mean and then each expert: [1 + E, B, L].
    """

    def __init__(
        self,
        num_experts: int,
        num_inputs: int,
        task_outputs: Sequence[int],
        averages: Sequence[Average] | None = None,
    ) -> None:
        super().__init__()
        self.heads = StackedLinear(num_experts, num_inputs, sum(task_outputs))
        self.mean = MeanPrediction(task_outputs, averages)

    def forward(self, gates: Tensor, experts: Tensor) -> Output | OutputOfMembers:
        logits = self.heads(experts).transpose(0, 1)  # [E, B, L]
        weights = gates.movedim(-1, 0)  # [E, B, T]
        if not self.training:
            return Output(self.mean(logits, weights), gates)
        members = torch.cat([self.mean(logits.detach(), weights)[None], logits])  # [1 + E, B, L]
        return OutputOfMembers(members[0], gates, members)
