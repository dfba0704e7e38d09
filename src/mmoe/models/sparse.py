"""Inputs that are mostly zeros, and their product with a weight: a sum of its rows instead of a full product.

B batch, C categorical columns, L levels of all columns, I inputs, O outputs, R replicas.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class SparseInputs(NamedTuple):
    """Inputs [one-hot levels | dense], without the zeros.

    Shape:
        codes: [B, C], integers to L; L is an unseen level, all zeros. dense: [B, I - L].
    """

    codes: Tensor
    dense: Tensor

    def to_dense(self, num_inputs: int) -> Tensor:
        """The same inputs as one tensor, [B, I]."""
        num_levels = num_inputs - self.dense.shape[1]
        return torch.cat([one_hot(self.codes, num_levels, self.dense.dtype), self.dense], dim=1)


def one_hot(codes: Tensor, num_levels: int, dtype: torch.dtype) -> Tensor:
    """Zeros [B, L], with a one at each code."""
    # Unseen levels have the code L: a column for them is written, then left out.
    x = codes.new_zeros(codes.shape[0], num_levels + 1, dtype=dtype)
    return x.scatter_(1, codes.long(), 1.0)[:, :-1]


def input_product(x: Tensor | SparseInputs, weight: Tensor) -> Tensor:
    """The product of inputs [B, I] and a weight [I, O]: einsum("bi,io->bo")."""
    if isinstance(x, Tensor):
        return torch.einsum("bi,io->bo", x, weight)
    num_levels = weight.shape[0] - x.dense.shape[1]
    levels, dense = weight[:num_levels], weight[num_levels:]
    product: Tensor = _OneHotProduct.apply(x.codes, levels)  # type: ignore[no-untyped-call]
    return product + torch.einsum("bi,io->bo", x.dense, dense)


class _OneHotProduct(torch.autograd.Function):
    """one_hot(codes) [B, L] times a weight [L, O].

    Summing C rows is about ten times faster than the product; the weight's gradient is a product still, for
    adding rows up by level is slower than that.
    """

    @staticmethod
    def forward(codes: Tensor, weight: Tensor) -> Tensor:
        zeros = weight.new_zeros(1, weight.shape[1])  # embedding_bag's own padding takes a slower way
        return embedding_bag(codes.int(), torch.cat([weight, zeros]), mode="sum")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        codes, weight = inputs
        ctx.save_for_backward(codes)
        ctx.num_levels = weight.shape[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (codes,) = ctx.saved_tensors
        x = one_hot(codes, ctx.num_levels, gradient.dtype)
        return None, torch.einsum("bl,bo->lo", x, gradient)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], codes: Tensor, weight: Tensor) -> Any:
        """Replicas' weights [R, L, O]: one full product is the faster way, and codes may be [R, B, C]."""
        own_rows, own_weight = (dim is not None for dim in in_dims)
        flat = codes.flatten(0, 1) if own_rows else codes
        x = one_hot(flat, weight.shape[-2], weight.dtype)
        if own_rows:
            x = torch.unflatten(x, 0, codes.shape[:2])
        equation = f"{'r' * own_rows}bl,{'r' * own_weight}lo->rbo"
        return torch.einsum(equation, x, weight), 0
