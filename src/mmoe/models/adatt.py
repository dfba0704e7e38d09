"""AdaTT-sp (Li et al., KDD 2023): adaptive task-to-task fusion with task-specific and shared experts.

B batch, I inputs, T tasks, S sources (the T tasks, then the shared part), E all experts, H
expert width, L logits of all tasks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.models import layers
from mmoe.models.gating import mix, softmax
from mmoe.models.ple import PLE


class FusionLevel(nn.Module):
    """Experts of every source, and for each source the sum of two mixtures: of all experts, and of its own.

    In the first mixture, a gate weighs all experts for each row. The second one, the paper's residual, weighs
    the source's own (native) experts with learned weights that are the same for all rows. The last level
    has no mixture for the shared source, so its outputs have T instead of S.

    Shape:
        x: [B, I] in the first level, [B, S, I] in the others; output: mixtures [B, S, H] and gates [B, S, E].
    """

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        task_experts: int,
        shared_experts: int,
        units: Sequence[int],
        activation: str,
        dropout: float,
        is_first: bool,
        is_last: bool,
    ) -> None:
        super().__init__()
        sizes = torch.tensor([task_experts] * num_tasks + [shared_experts])  # experts of each source, [S]
        source = torch.arange(num_tasks + 1).repeat_interleave(sizes)  # [E]
        is_native = source == torch.arange(num_tasks if is_last else num_tasks + 1)[:, None]  # [S, E]
        self.source = nn.Buffer(source, persistent=False)
        self.is_native = nn.Buffer(is_native.float(), persistent=False)
        self.native = nn.Parameter((is_native / is_native.sum(1, keepdim=True)).sum(0))  # [E]
        self.is_first = is_first
        layer = layers.SharedInputLinear if is_first else layers.StackedLinear
        self.experts = nn.Sequential(
            layer(len(source), num_inputs, units[0]),
            *layers.hidden_layers(len(source), units, activation, dropout),
        )
        self.gates = layer(len(is_native), num_inputs, len(source))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        experts = self.experts(x if self.is_first else x.index_select(1, self.source))  # [B, E, H]
        gates = softmax(self.gates(x if self.is_first else x[:, : len(self.is_native)]))  # [B, S, E]
        return mix(gates + self.is_native * self.native, experts), gates


class AdaTT(PLE):
    """Fusion levels, then a tower per task: AdaTT-sp, the paper's variant with shared experts (section 3).

    For a source with the experts E_own among all experts E, a level computes E g(x) + E_own v, with a linear
    softmax gate g and learned weights v. The paper fixes v at 1 for a single own expert, and does not say how
    v starts for several. Here v is always learned, and E_own v starts as the mean of the own experts.

    Args:
        num_levels: number of fusion levels.
        shared_experts: experts per level that belong to no task.
        Other arguments: see `PLE`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and the last level's gates [B, T, E], without the weights v.
    """

    level = FusionLevel

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        num_levels: int = 2,
        task_experts: int = 2,
        shared_experts: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(num_inputs, num_tasks, num_levels, task_experts, shared_experts, **options)
