"""The mixtures of experts with a gate for each task, and with one gate (Ma et al., KDD 2018, section 4).

B batch, I inputs, E experts, H expert width, T tasks, G gate width, U tower width.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.arguments import check_finite, check_integers, check_probabilities, check_widths
from mmoe.models.layers import StackedLinear, activate, hidden_layers, mix, softmax, tower
from mmoe.models.output import Output
from mmoe.models.sparse import SparseInputs, linear


class MMoE(nn.Module):
    """Experts shared by all tasks, mixed for each task by a gate of its own, and read by its tower.

    Equations 6 and 7 of the paper: f_k(x) = sum_e softmax(W_k x)_e f_e(x), y_k = h_k(f_k(x)).

    Args:
        num_inputs: I.
        num_tasks: T.
        num_experts: E.
        expert_units: widths of an expert's layers; the last is H.
        gate_units: widths of a gate's hidden layers; none is the paper's linear gate.
        tower_units: widths of a tower's hidden layers, before its one output.
        activation: of hidden layers; a key of `layers.ACTIVATIONS`.
        dropout: share of hidden units set to 0 in training.
        gate_temperature: gate logits are divided by it; above 1 the experts are mixed more evenly.
        gate_dropout: probability that a gate ignores an expert in a training row; the weights of the
            others are renormalised. It keeps gates from settling on one expert (Zhao et al., RecSys 2019).

    Raises:
        UserError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and gates [B, T, E].
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
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, num_experts = check_integers(
            1, num_inputs=num_inputs, num_tasks=num_tasks, num_experts=num_experts
        )
        (expert_units,) = check_widths(1, expert_units=expert_units)
        gate_units, tower_units = check_widths(0, gate_units=gate_units, tower_units=tower_units)
        (gate_temperature,) = check_finite(1e-6, gate_temperature=gate_temperature)
        (gate_dropout,) = check_probabilities(gate_dropout=gate_dropout)
        self.num_experts, self.num_tasks = num_experts, num_tasks
        self.gate_temperature, self.gate_dropout = gate_temperature, gate_dropout

        gate_widths = [*gate_units, num_experts]
        self.gate_width = gate_widths[0]
        # The first layers of all experts and gates, [E*H | T*G], share their input and so their fan-in.
        num_gates = 1 if self.one_gate else num_tasks
        self.first_widths = [num_experts * expert_units[0], num_gates * gate_widths[0]]
        bound = 1 / math.sqrt(num_inputs)
        self.weight = nn.Parameter(torch.empty(num_inputs, sum(self.first_widths)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(sum(self.first_widths)).uniform_(-bound, bound))
        self.experts = nn.Sequential(*hidden_layers(num_experts, expert_units, activation, dropout))
        self.gates = nn.Sequential()
        for i, o in pairwise(gate_widths):
            self.gates.extend([*activate(activation, dropout), StackedLinear(num_gates, i, o)])
        self.towers = nn.Sequential(*tower(num_tasks, [expert_units[-1], *tower_units], activation, dropout))

    def forward(self, x: Tensor | SparseInputs) -> Output:
        """Logits and gate weights of a batch."""
        z = linear(x, self.weight, self.bias)  # [B, E*H + T*G]
        experts, gates = torch.split(z, self.first_widths, dim=1)
        experts = self.experts(torch.unflatten(experts, 1, (self.num_experts, -1)))  # [B, E, H]
        gates = self._normalise(self.gates(torch.unflatten(gates, 1, (-1, self.gate_width))))
        gates = gates.expand(-1, self.num_tasks, -1)  # [B, T, E]
        return Output(self.towers(mix(gates, experts)).squeeze(-1), gates)

    def _normalise(self, logits: Tensor) -> Tensor:
        """Gate logits [B, T, E] to weights that sum to 1 over E."""
        if self.gate_temperature != 1:
            logits = logits / self.gate_temperature
        if self.training and self.gate_dropout:
            keep = torch.rand_like(logits) >= self.gate_dropout
            keep |= ~keep.any(-1, keepdim=True)  # a gate that lost every expert keeps them all
            logits = logits.masked_fill(~keep, -math.inf)
        return softmax(logits)


class OMoE(MMoE):
    """One gate for all tasks (the paper's section 4.1): y_k = h_k(sum_e softmax(W x)_e f_e(x)).

    Arguments and shapes are those of `MMoE`; the gates of all tasks are equal.
    """

    one_gate = True
