"""The layers that models share. Stacked layers are N linear layers, applied in one call.

B batch, N layers, I inputs, O outputs.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_probabilities
from mmoe.errors import ArgumentError
from mmoe.models.sparse_inputs import SparseInputs, linear

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}


class StackedLinear(nn.Module):
    """N linear layers, each with its own input, initialised like `nn.Linear`.

    Shape:
        x: [B, N, I]; output: [B, N, O].
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_layers, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_layers, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer n to x[:, n]: einsum("bni,nio->bno", x, weight) + bias in one call."""
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight).transpose(0, 1)  # [B, N, O]

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [N, I, O] and biases [N, O]."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return "num_layers={}, in_features={}, out_features={}".format(*self.weight.shape)


class SharedInputLinear(nn.Module):
    """N linear layers that share one input, initialised like `nn.Linear`.

    Their weights are the columns of one matrix [I, N*O], so one product computes all N layers.

    Shape:
        x: [B, I]; output: [B, N, O].
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.shape = (num_layers, out_features)
        width, bound = num_layers * out_features, 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(in_features, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor | SparseInputs) -> Tensor:
        return torch.unflatten(linear(x, self.weight, self.bias), 1, self.shape)  # [B, N, O]

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [N, I, O] and biases [N, O]."""
        weight = torch.unflatten(self.weight, 1, self.shape).transpose(0, 1)  # [N, I, O]
        return weight, self.bias.view(self.shape)  # [N, O]


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws float32 numbers on a CPU; docs/performance.md has the time that this saves."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        is_kept = torch.rand_like(x, dtype=torch.float32) >= self.p
        return x * (is_kept.to(x.dtype) / (1 - self.p))


def activation_layers(activation: str, dropout: float) -> list[nn.Module]:
    """The activation, followed by a dropout layer unless `dropout` is 0.

    Raises:
        ArgumentError: the activation is unknown, or dropout is outside [0, 1).
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}")
    (dropout,) = check_probabilities(dropout=dropout)
    return [ACTIVATIONS[activation](), *([Dropout(dropout)] if dropout else [])]


def deeper_layers(num_layers: int, widths: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """Build the layers that follow a first layer with widths[0] outputs.

    Each further width adds an activation, dropout (unless it is 0) and a `StackedLinear` to that width.
    """
    modules: list[nn.Module] = []
    for i, o in pairwise(widths):
        modules += [*activation_layers(activation, dropout), StackedLinear(num_layers, i, o)]
    return modules


def hidden_layers(num_layers: int, widths: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """As `deeper_layers`, with an activation and dropout after the last layer."""
    return [*deeper_layers(num_layers, widths, activation, dropout), *activation_layers(activation, dropout)]
