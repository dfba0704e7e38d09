"""Multi-gate mixture-of-experts and its one-gate variant (Ma et al., KDD 2018, section 4).

B batch, I inputs, E experts, F width of an expert's first layer, H width of its last layer, T tasks, G width
of a gate's first layer, L logits of all tasks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_finite, check_integers, check_probabilities, check_widths
from mmoe.errors import ArgumentError
from mmoe.models.column_views import ColumnViews
from mmoe.models.expert_heads import ExpertHeads
from mmoe.models.gating import mix, softmax
from mmoe.models.layers import deeper_layers, hidden_layers
from mmoe.models.mean_prediction import Average
from mmoe.models.network import Output, OutputOfMembers
from mmoe.models.sparse_inputs import SparseInputs, linear
from mmoe.models.towers import TaskLogits, task_towers
from mmoe.tasks import Task


class MMoE(nn.Module):
    """Experts shared by all tasks. Each task mixes them with its own gate and has its own tower.

    Equations 6 and 7 of the paper, for task k: f_k(x) = sum_e softmax(W_k x)_e f_e(x), y_k = h_k(f_k(x)).

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        num_experts: E.
        expert_units: widths of an expert's layers.
        gate_units: widths of a gate's hidden layers; an empty list gives the paper's linear gates.
        tower_units: widths of a tower's hidden layers, before its outputs.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.
        gate_temperature: divides the gate logits; values above 1 mix the experts more evenly.
        gate_dropout: probability that a gate drops an expert for a training row. The remaining weights are
            renormalised. This keeps a gate from collapsing to one expert (Zhao et al., RecSys 2019).
        column_share: the share of the columns that each unit of the experts' first layer sees; 1: all.
        column_scale_rate: each expert learns a scale for each column, and scales change this many times as
            fast as weights; 0: no scales. See `ColumnViews` for this option and the one before.
        input_groups: the number of each input's column; negative: every unit sees the input. None: each input
            is a column.
        expert_heads: replace the towers by `ExpertHeads`: each expert predicts every task and has its own
            loss, and a task's gate weighs the predictions of the experts. `tower_units` is then not used.
        averages: for each task, the function that averages predictions; see `MeanPrediction`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and gates [B, T, E]; in training with expert heads, also the logits
        of each expert, see `ExpertHeads`. F is expert_units[0], H is expert_units[-1], and G is gate_units[0]
        (E for linear gates).
    """

    takes_sparse_inputs = True
    one_gate = False

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        num_experts: int = 8,
        expert_units: Sequence[int] = (16,),
        gate_units: Sequence[int] = (),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
        gate_temperature: float = 1.0,
        gate_dropout: float = 0.0,
        column_share: float = 1.0,
        column_scale_rate: float = 0.0,
        expert_heads: bool = False,
        task_outputs: Sequence[int] | None = None,
        input_groups: Sequence[int] | None = None,
        averages: Sequence[Average] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, num_experts = check_integers(
            1, num_inputs=num_inputs, num_tasks=num_tasks, num_experts=num_experts
        )
        (expert_units,) = check_widths(1, expert_units=expert_units)
        gate_units, tower_units = check_widths(0, gate_units=gate_units, tower_units=tower_units)
        (self.gate_temperature,) = check_finite(1e-6, gate_temperature=gate_temperature)
        (self.gate_dropout,) = check_probabilities(gate_dropout=gate_dropout)
        self.num_experts, self.num_tasks = num_experts, num_tasks
        num_gates = 1 if self.one_gate else num_tasks
        task_logits = TaskLogits(num_tasks, task_outputs)
        gate_widths = [*gate_units, num_experts]

        # The first layers of all experts and gates share one weight [I, E*F + T*G] and one product.
        self.first_widths = [num_experts * expert_units[0], num_gates * gate_widths[0]]
        self.gate_width = gate_widths[0]
        bound = 1 / math.sqrt(num_inputs)  # as in nn.Linear
        weight = torch.empty(num_inputs, sum(self.first_widths)).uniform_(-bound, bound)
        self.views: ColumnViews | None = None
        if column_share != 1 or column_scale_rate:
            groups = list(range(num_inputs) if input_groups is None else input_groups)
            if len(groups) != num_inputs:
                raise ArgumentError(f"input_groups: must have {num_inputs} integers, has {len(groups)}")
            self.views = ColumnViews(groups, num_experts, column_share, column_scale_rate)
            self.views.draw_and_rescale(weight[:, : self.first_widths[0]])
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(sum(self.first_widths)).uniform_(-bound, bound))
        self.experts = nn.Sequential(*hidden_layers(num_experts, expert_units, activation, dropout))
        self.gates = nn.Sequential(*deeper_layers(num_gates, gate_widths, activation, dropout))
        h = expert_units[-1]
        self.heads: ExpertHeads | None = None
        if expert_heads:
            self.heads = ExpertHeads(num_experts, h, task_logits.outputs, averages)
        else:
            self.towers = task_towers(num_tasks, h, tower_units, task_logits, activation, dropout)
        self.task_logits = task_logits

    @staticmethod
    def task_arguments(tasks: Sequence[Task]) -> Mapping[str, Any]:
        """The arguments that follow from the tasks."""
        return {"averages": [task.average for task in tasks]}

    def forward(self, x: Tensor | SparseInputs) -> Output | OutputOfMembers:
        weight: Tensor = self.weight
        if self.views is not None:
            experts_weight, gates_weight = torch.split(weight, self.first_widths, dim=1)
            weight = torch.cat([self.views(experts_weight), gates_weight], dim=1)
        first = linear(x, weight, self.bias)  # [B, E*F + T*G]
        expert_hidden, gate_hidden = torch.split(first, self.first_widths, dim=1)  # [B, E*F], [B, T*G]
        experts = self.experts(torch.unflatten(expert_hidden, 1, (self.num_experts, -1)))  # [B, E, H]
        gate_hidden = torch.unflatten(gate_hidden, 1, (-1, self.gate_width))  # [B, T, G]; OMoE: [B, 1, G]
        gate_logits = self.gates(gate_hidden)  # [B, T, E]; OMoE: [B, 1, E]
        gates = self._normalise(gate_logits).expand(-1, self.num_tasks, -1)  # [B, T, E]
        if self.heads is not None:
            return self.heads(gates, experts)  # type: ignore[no-any-return]
        logits = self.task_logits(self.towers(mix(gates, experts)))  # [B, L]
        return Output(logits, gates)

    def _normalise(self, logits: Tensor) -> Tensor:
        """Turn gate logits [B, T, E] into weights that sum to 1 over E."""
        if self.gate_temperature != 1:
            logits = logits / self.gate_temperature
        if self.training and self.gate_dropout:
            keep = torch.rand_like(logits) >= self.gate_dropout
            keep |= ~keep.any(-1, keepdim=True)  # a gate that drops every expert keeps them all
            logits = logits.masked_fill(~keep, -math.inf)
        return softmax(logits)


class OMoE(MMoE):
    """One-gate mixture-of-experts (section 4.1): y_k = h_k(sum_e softmax(W x)_e f_e(x)).

    All tasks have the same gate weights. Arguments and shapes are as in `MMoE`.
    """

    one_gate = True
