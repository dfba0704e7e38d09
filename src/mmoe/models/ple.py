"""Progressive layered extraction (Tang et al., RecSys 2020): task-specific and shared experts.

B batch, I inputs, T tasks, S sources (the T tasks, then the shared part), E all experts, H expert width, L
logits of all tasks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_widths
from mmoe.models import layers
from mmoe.models.gating import mix, softmax
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.models.towers import TaskLogits, task_towers


class ExtractionLevel(nn.Module):
    """Experts of every source, and one gate per source that mixes them into the source's next input.

    A task's gate mixes the task's own experts and the shared ones; the shared gate mixes all experts. The
    last level has no shared gate, so its outputs have T instead of S.

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
        shared = num_tasks  # index of the shared source and its gate
        tasks = torch.arange(num_tasks).repeat_interleave(task_experts)
        source = torch.cat([tasks, torch.full((shared_experts,), shared)])  # [E]
        gate = torch.arange(num_tasks if is_last else num_tasks + 1)[:, None]
        is_masked = (source != gate) & (source != shared) & (gate != shared)  # [S, E]
        self.source = nn.Buffer(source, persistent=False)
        self.is_masked = nn.Buffer(is_masked, persistent=False)
        self.is_first = is_first
        layer = layers.SharedInputLinear if is_first else layers.StackedLinear
        self.experts = nn.Sequential(
            layer(len(source), num_inputs, units[0]),
            *layers.hidden_layers(len(source), units, activation, dropout),
        )
        self.gates = layer(len(gate), num_inputs, len(source))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        experts = self.experts(x if self.is_first else x.index_select(1, self.source))  # [B, E, H]
        gates = self.gates(x if self.is_first else x[:, : len(self.is_masked)])  # [B, S, E]
        gates = softmax(gates.masked_fill(self.is_masked, -math.inf))
        return mix(gates, experts), gates


class PLE(nn.Module):
    """Extraction levels, then a tower per task. One level is CGC (customized gate control).

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        num_levels: number of extraction levels.
        task_experts: experts per task and level.
        shared_experts: experts per level that all tasks share.
        expert_units: widths of an expert's layers; the last is H.
        tower_units: widths of a tower's hidden layers, before its outputs.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and the last level's gates [B, T, E]: 0 for other tasks' experts.
    """

    takes_sparse_inputs = True
    level: type[nn.Module] = ExtractionLevel

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        num_levels: int = 1,
        task_experts: int = 3,
        shared_experts: int = 2,
        expert_units: Sequence[int] = (16,),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, num_levels = check_integers(
            1, num_inputs=num_inputs, num_tasks=num_tasks, num_levels=num_levels
        )
        task_experts, shared_experts = check_integers(
            1, task_experts=task_experts, shared_experts=shared_experts
        )
        (expert_units,) = check_widths(1, expert_units=expert_units)
        (tower_units,) = check_widths(0, tower_units=tower_units)
        task_logits, h = TaskLogits(num_tasks, task_outputs), expert_units[-1]
        self.levels = nn.ModuleList(
            self.level(
                num_inputs if level == 0 else h,
                num_tasks,
                task_experts,
                shared_experts,
                expert_units,
                activation,
                dropout,
                is_first=level == 0,
                is_last=level == num_levels - 1,
            )
            for level in range(num_levels)
        )
        self.towers = task_towers(num_tasks, h, tower_units, task_logits, activation, dropout)
        self.task_logits = task_logits

    def forward(self, x: Tensor | SparseInputs) -> Output:
        for level in self.levels:
            x, gates = level(x)
        return Output(self.task_logits(self.towers(x)), gates)  # logits [B, L]
