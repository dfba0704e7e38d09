"""Inputs that are mostly zeros, and a linear layer of them: sums of its weight's rows, not a full product.

B batch, C categorical columns, L levels of all columns, I inputs, O outputs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

CHUNK = 1024  # rows of dense inputs at a time, which stay in the processor's cache
SPARSE_SIZE = 2**14  # rows times outputs from which on sums are faster


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
        x = self.dense.new_zeros(self.dense.shape[0], max(num_inputs, num_levels + 1))
        x.scatter_(1, self.codes.long(), 1.0)  # that of an unseen level is overwritten, or left out
        x[:, num_levels:num_inputs] = self.dense
        return x[:, :num_inputs]


def linear(x: Tensor | SparseInputs, weight: Tensor, bias: Tensor) -> Tensor:
    """einsum("bi,io->bo", x, weight) + bias of inputs [B, I] and a weight [I, O], by the faster way."""
    if isinstance(x, SparseInputs):
        if x.codes.shape[0] * weight.shape[1] >= SPARSE_SIZE:
            product: Tensor = _SparseProduct.apply(*x, weight)  # type: ignore[no-untyped-call]
            return product + bias
        x = x.to_dense(weight.shape[0])
    return torch.addmm(bias, x, weight)


class _SparseProduct(torch.autograd.Function):
    """`SparseInputs` [B, I] times a weight [I, O].

    Summing C rows is about ten times faster than the product with one-hot levels; the weight's gradient is a
    product still, for adding rows up by level is slower than that.
    """

    @staticmethod
    def forward(codes: Tensor, dense: Tensor, weight: Tensor) -> Tensor:
        num_levels = weight.shape[0] - dense.shape[1]
        zeros = weight.new_zeros(1, weight.shape[1])  # embedding_bag's own padding takes a slower way
        levels = torch.cat([weight[:num_levels], zeros])
        return embedding_bag(codes.int(), levels, mode="sum").addmm_(dense, weight[num_levels:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        codes, dense, weight = ctx.saved_tensors
        of_weight, of_dense = None, None
        for some in zip(*(tensor.split(CHUNK) for tensor in (codes, dense, gradient)), strict=True):
            x = SparseInputs(*some[:2]).to_dense(weight.shape[0])
            of_weight = x.T @ some[2] if of_weight is None else of_weight.addmm_(x.T, some[2])
        if ctx.needs_input_grad[1]:
            of_dense = torch.einsum("bo,io->bi", gradient, weight[weight.shape[0] - dense.shape[1] :])
        return None, of_dense, of_weight
