"""Stacked linear layers: n layers of one shape as one weight.

B batch, N layers, I inputs, O outputs.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmoe.arguments import check_probabilities
from mmoe.errors import UserError
from mmoe.models.sparse import SparseInputs, linear

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}

QUICK_SIZE = 400  # multiplications of a product; below it torch has a loop of its own
MANY_ROWS = 256  # from which on that costs more than padding does


class StackedLinear(nn.Module):
    """N linear layers side by side, each initialised as `nn.Linear` is: uniform within 1 / sqrt(I).

    Shape:
        x: [B, N, I]; output: [B, N, O].
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num_layers, out_features))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer n to x[:, n]: einsum("bni,nio->bno", x, weight) + bias, in one call."""
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight).transpose(0, 1)

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [N, I, O] and biases [N, O]."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        """The three sizes, for `print`."""
        return "num_layers={}, in_features={}, out_features={}".format(*self.weight.shape)


class FanOut(nn.Module):
    """N linear layers on the same input as one weight, [I, N*O]: one product gives all of them.

    Initialised as `nn.Linear` is.

    Shape:
        x: [B, I]; output: [B, N, O].
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.shape = (num_layers, out_features)
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(
            torch.empty(in_features, num_layers * out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(num_layers * out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor | SparseInputs) -> Tensor:
        """Apply every layer to x."""
        z = linear(x, self.weight, self.bias)
        return torch.unflatten(z, 1, self.shape)  # [B, N, O]

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [N, I, O] and biases [N, O]."""
        weight = torch.unflatten(self.weight, 1, self.shape).transpose(0, 1)
        return weight, self.bias.view(self.shape)


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; a CPU is much faster along the first."""
    return logits.movedim(-1, 0).softmax(0).movedim(0, -1)


def mix(gates: Tensor, experts: Tensor) -> Tensor:
    """Each task's mixture of the experts, einsum("bte,beh->bth", gates, experts).

    For a CPU many small products are padded with gates of 0, up to the size from which on `bmm` is quick.
    """
    num_rows, num_tasks, num_experts = gates.shape
    if gates.device.type == "cpu" and not torch.compiler.is_compiling() and num_rows >= MANY_ROWS:
        missing = -(-QUICK_SIZE // (num_experts * experts.shape[2])) - num_tasks
        gates = pad(gates, (0, 0, 0, max(0, missing)))
    return torch.bmm(gates, experts)[:, :num_tasks]


def activate(activation: str, dropout: float) -> list[nn.Module]:
    """What follows a hidden layer: the activation, and dropout where there is any.

    Raises:
        UserError: an unknown activation, or a dropout outside [0, 1).
    """
    if activation not in ACTIVATIONS:
        raise UserError(f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}")
    (dropout,) = check_probabilities(dropout=dropout)
    return [ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])]


def hidden_layers(num_layers: int, widths: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """What follows a first layer of widths[0]: activation, then stacked layers to the other widths.

    Each of these is followed by the activation, and by dropout where there is any.
    """
    modules = activate(activation, dropout)
    for i, o in pairwise(widths):
        modules += [StackedLinear(num_layers, i, o), *activate(activation, dropout)]
    return modules


def tower(num_tasks: int, widths: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """Layers from widths[0] inputs of each task to its one output, [B, T, widths[0]] to [B, T, 1]."""
    modules: list[nn.Module] = []
    for i, o in pairwise(widths):
        modules += [StackedLinear(num_tasks, i, o), *activate(activation, dropout)]
    return [*modules, StackedLinear(num_tasks, widths[-1], 1)]
