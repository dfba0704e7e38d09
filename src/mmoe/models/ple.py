"""Progressive layered extraction (Tang et al., RecSys 2020): experts of one task beside shared ones.

B batch, I inputs, T tasks, S sources (the tasks, and what they share), E experts of all sources, H expert
width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.arguments import check_integers, check_widths
from mmoe.models.layers import FanOut, StackedLinear, hidden_layers, mix, softmax, tower
from mmoe.models.output import Output
from mmoe.models.sparse import SparseInputs


class Extraction(nn.Module):
    """One level: experts of each source, and for each reader a gate over those that it may use.

    The sources are the tasks and what they share, as are the readers of all levels but the last, which has
    the tasks alone. A task reads its own experts and the shared ones; the shared reader reads all.

    Shape:
        x: [B, I] in the first level, [B, S, I] in the others.
        output: mixed [B, readers, H] and gates [B, readers, E].
    """

    owner: Tensor
    barred: Tensor

    def __init__(
        self,
        num_inputs: int,
        task_experts: int,
        shared_experts: int,
        num_tasks: int,
        first: bool,
        last: bool,
        units: Sequence[int],
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        shared = num_tasks  # the number of the shared source and reader
        tasks = torch.arange(num_tasks).repeat_interleave(task_experts)
        owner = torch.cat([tasks, torch.full((shared_experts,), shared)])  # [E]
        readers = torch.arange(num_tasks if last else num_tasks + 1)[:, None]
        barred = (owner != readers) & (owner != shared) & (readers != shared)  # [readers, E]
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("barred", barred, persistent=False)
        self.first = first
        layer = FanOut if first else StackedLinear
        self.experts = nn.Sequential(
            layer(len(owner), num_inputs, units[0]), *hidden_layers(len(owner), units, activation, dropout)
        )
        self.gates = layer(len(readers), num_inputs, len(owner))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the experts for each reader."""
        experts = self.experts(x if self.first else x.index_select(1, self.owner))  # [B, E, H]
        gates = self.gates(x if self.first else x[:, : len(self.barred)])
        gates = softmax(gates.masked_fill(self.barred, -math.inf))  # [B, readers, E]
        return mix(gates, experts), gates


class PLE(nn.Module):
    """Levels of extraction, then a tower for each task; one level is CGC (customized gate control).

    Args:
        num_inputs: I.
        num_tasks: T.
        num_levels: levels of extraction.
        task_experts: experts of each task, in each level.
        shared_experts: experts that all tasks share, in each level.
        expert_units: widths of an expert's layers; the last is H.
        tower_units: widths of a tower's hidden layers, before its one output.
        activation: of hidden layers; a key of `layers.ACTIVATIONS`.
        dropout: share of hidden units set to 0 in training.

    Raises:
        UserError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and the last level's gates [B, T, E], zero for other tasks' experts.
    """

    takes_sparse_inputs = True

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
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, num_levels, task_experts, shared_experts = check_integers(
            1,
            num_inputs=num_inputs,
            num_tasks=num_tasks,
            num_levels=num_levels,
            task_experts=task_experts,
            shared_experts=shared_experts,
        )
        (expert_units,) = check_widths(1, expert_units=expert_units)
        (tower_units,) = check_widths(0, tower_units=tower_units)
        widths = [num_inputs] + [expert_units[-1]] * (num_levels - 1)
        self.levels = nn.ModuleList(
            Extraction(
                width,
                task_experts,
                shared_experts,
                num_tasks,
                level == 0,
                level == num_levels - 1,
                expert_units,
                activation,
                dropout,
            )
            for level, width in enumerate(widths)
        )
        self.towers = nn.Sequential(*tower(num_tasks, [expert_units[-1], *tower_units], activation, dropout))

    def forward(self, x: Tensor | SparseInputs) -> Output:
        """Logits and gate weights of a batch."""
        for level in self.levels:
            x, gates = level(x)
        return Output(self.towers(x).squeeze(-1), gates)
