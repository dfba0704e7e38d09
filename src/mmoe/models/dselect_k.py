"""DSelect-k (Hazimeh et al., NeurIPS 2021): MMoE whose gates select at most k experts for each row.

B batch, I inputs, E experts, F width of an expert's first layer, H width of its last layer, T tasks, K
selectors of a task, M bits of an expert's code, C codes (2^M), L logits of all tasks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmoe.checks.arguments import check_finite, check_integers, check_widths
from mmoe.models.gating import mix, softmax
from mmoe.models.layers import hidden_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs, linear
from mmoe.models.towers import TaskLogits, task_towers

EPSILON = 1e-6  # keeps the logarithm of a bit's probability, and its gradient, finite


class SelectorGates(nn.Module):
    """Gates that each mix K selectors. A selector chooses one expert by the bits of its code.

    A bit is 1 with the weight S(z), where S is the smooth-step function (definition 1 of the paper): 0 below
    -gamma/2, 1 above gamma/2, and the polynomial -2 z^3/gamma^3 + 3 z/(2 gamma) + 1/2 between them. The
    weight of a code is the product over its bits, and the gate is sum_k softmax(alpha)_k weights_k.

    Shape:
        alpha: [B, T, K]; z: [B, T, K, M]; output: weights [B, T, E], which sum to 1.
    """

    returns_weights = True  # other gates return logits; see `masking.masked_expert`

    def __init__(self, num_experts: int, gamma: float) -> None:
        super().__init__()
        self.num_experts, self.gamma = num_experts, gamma
        self.num_bits = (num_experts - 1).bit_length()

    def forward(self, alpha: Tensor, z: Tensor) -> Tensor:
        ones = self.smooth_step(z)  # [B, T, K, M]
        codes = softmax(alpha).unsqueeze(-1)  # [B, T, K, 1]
        for m in range(self.num_bits):  # each bit doubles the codes; bit m counts 2^m
            with_one = codes * ones[..., m : m + 1]
            codes = torch.cat([codes - with_one, with_one], dim=-1)
        codes = codes.sum(2)  # [B, T, C]
        if codes.shape[-1] == self.num_experts:
            return codes
        own, surplus = codes[..., : self.num_experts], codes[..., self.num_experts :]
        return own + pad(surplus, (0, own.shape[-1] - surplus.shape[-1]))  # [B, T, E]

    def smooth_step(self, z: Tensor) -> Tensor:
        """The weight of a 1 in each bit, in the shape of z."""
        z = z.clamp(-self.gamma / 2, self.gamma / 2)
        return 0.5 + z * (1.5 / self.gamma - 2 / self.gamma**3 * z * z)

    def entropy(self, z: Tensor) -> Tensor:
        """The entropy of each selector's codes, [B, T, K]: the sum of the entropies of its bits."""
        ones = self.smooth_step(z)
        zeros = 1 - ones
        return -(ones * (ones + EPSILON).log() + zeros * (zeros + EPSILON).log()).sum(-1)


class DSelectK(nn.Module):
    """MMoE with `SelectorGates` (section 3 of the paper).

    If E is not a power of 2, some codes have no expert of their own. The authors' program adds a penalty on
    the weight of these codes. Here code c selects expert c mod E, so the weights always sum to 1 and no
    penalty is needed. As in the authors' program, the weights and biases of the logits z of the
    bits, or z itself if `is_static`, start in [-gamma/100, gamma/100].

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        num_experts: E.
        num_selectors: K, the largest number of experts with a weight above 0 once all bits are 0 or 1.
        is_static: whether each task uses the same experts for all rows. If not, alpha and z are linear in x.
        gamma: width of the interval in which a bit is neither 0 nor 1.
        entropy: factor of the penalty, which makes bits 0 or 1 sooner (section 3.2): the sum over tasks
            and selectors of the mean entropy of their codes; 0: no penalty.
        expert_units, tower_units, activation, dropout: see `MMoE`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and gates [B, T, E]. F is expert_units[0], and H is expert_units[-1].
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        num_experts: int = 8,
        num_selectors: int = 2,
        is_static: bool = False,
        gamma: float = 1.0,
        entropy: float = 0.0,
        expert_units: Sequence[int] = (16,),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, num_experts, num_selectors = check_integers(
            1,
            num_inputs=num_inputs,
            num_tasks=num_tasks,
            num_experts=num_experts,
            num_selectors=num_selectors,
        )
        (expert_units,) = check_widths(1, expert_units=expert_units)
        (tower_units,) = check_widths(0, tower_units=tower_units)
        (gamma,) = check_finite(1e-6, gamma=gamma)
        (self.entropy,) = check_finite(0, entropy=entropy)
        self.has_penalty = self.entropy > 0
        self.num_experts, self.is_static = num_experts, bool(is_static)
        task_logits = TaskLogits(num_tasks, task_outputs)
        self.gates = SelectorGates(num_experts, gamma)
        self.selector_shape = (num_tasks, num_selectors, 1 + self.gates.num_bits)  # alpha, then z

        # The first layers of all experts and gates share one weight and one product, as in `MMoE`.
        bound, width = 1 / math.sqrt(num_inputs), num_experts * expert_units[0]
        selectors = torch.empty(num_inputs + 1, *self.selector_shape)  # weights, then the bias
        selectors[..., :1].uniform_(-bound, bound)
        selectors[..., 1:].uniform_(-gamma / 100, gamma / 100)
        weight = torch.empty(num_inputs, width).uniform_(-bound, bound)
        bias = torch.empty(width).uniform_(-bound, bound)
        if self.is_static:
            self.selectors = nn.Parameter(selectors[-1])  # [T, K, 1 + M]
        else:
            weight = torch.cat([weight, selectors[:-1].flatten(1)], dim=1)
            bias = torch.cat([bias, selectors[-1].flatten()])
        self.first_widths = [width, len(bias) - width]
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.experts = nn.Sequential(*hidden_layers(num_experts, expert_units, activation, dropout))
        self.towers = task_towers(num_tasks, expert_units[-1], tower_units, task_logits, activation, dropout)
        self.task_logits = task_logits

    def forward(self, x: Tensor | SparseInputs) -> Output:
        return self._output_and_bits(x)[0]

    def forward_with_penalty(self, x: Tensor | SparseInputs) -> tuple[Output, Tensor]:
        """The output, and `entropy` times the entropy of the selectors, a scalar."""
        output, z = self._output_and_bits(x)
        return output, self.entropy * self.gates.entropy(z).mean(0).sum()

    def _output_and_bits(self, x: Tensor | SparseInputs) -> tuple[Output, Tensor]:
        """The output, and z [B, T, K, M]."""
        first = linear(x, self.weight, self.bias)
        expert_hidden, selector_hidden = torch.split(first, self.first_widths, dim=1)
        experts = self.experts(torch.unflatten(expert_hidden, 1, (self.num_experts, -1)))  # [B, E, H]
        if self.is_static:
            selectors = self.selectors.expand(first.shape[0], *self.selector_shape)
        else:
            selectors = torch.unflatten(selector_hidden, 1, self.selector_shape)  # [B, T, K, 1 + M]
        alpha, z = selectors[..., 0], selectors[..., 1:]
        gates = self.gates(alpha, z)  # [B, T, E]
        return Output(self.task_logits(self.towers(mix(gates, experts))), gates), z
