"""Stacked linear layers: n layers of one shape as one weight.

B batch, N layers, I inputs, O outputs.
"""

import math

import torch
from torch import Tensor, nn

from mmoe.checks import check_probabilities

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}


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
        """Apply layer n to x[:, n]."""
        return torch.einsum("bni,nio->bno", x, self.weight) + self.bias

    def extra_repr(self) -> str:
        """The three sizes, for `print`."""
        return "num_layers={}, in_features={}, out_features={}".format(*self.weight.shape)


def activate(activation: str, dropout: float) -> list[nn.Module]:
    """What follows a hidden layer: the activation, and dropout where there is any.

    Raises:
        ValueError: an unknown activation, or a dropout outside [0, 1).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}")
    check_probabilities(dropout=dropout)
    return [ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])]
