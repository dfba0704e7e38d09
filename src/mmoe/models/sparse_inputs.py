"""The first layer as products of sparse matrices, which on a CPU is faster than one dense product.

B batch, C columns with one level per row, I inputs, O outputs, S rows of the basis, D dense inputs.

A row has hundreds of inputs, but a few coefficients describe them. The inputs x [B, I] are factored:

    x = coefficients [B, S] @ basis [S, I] + the input of each column's most frequent level

Both matrices are sparse, and the basis is the same for all rows. A one-hot level needs one coefficient. A
number that fills 30 of its bins has 30 ones in x, but needs at most 3 coefficients, because the basis has
rows for several full bins at once. The layer computes coefficients @ (basis @ weight): for each row it adds
up a few rows of a matrix. The gradient of the weight uses the transposed matrices in the same way. Each
column's most frequent level is handled densely: most rows have it, and for so many entries a dense product
is faster.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmoe.checks.arguments import check_matrix
from mmoe.data.sparse_matrix import SparseMatrix


class SparseInputs(NamedTuple):
    """Inputs [B, I] in the factored form that the top of this file describes.

    Shape:
        coefficients: [B, S]; basis: [S, I].
        mode_values: [B, C], the value of the input if a column has its most frequent level, else 0.
        mode_inputs: [C], the positions of the inputs of these levels.
        dense: None, or [B, D] further inputs, which stand after the others.
    """

    coefficients: SparseMatrix
    basis: SparseMatrix
    mode_values: Tensor
    mode_inputs: Tensor
    dense: Tensor | None = None


def linear(x: Tensor | SparseInputs, weight: Tensor, bias: Tensor) -> Tensor:
    """einsum("bi,io->bo", x, weight) + bias of inputs [B, I] and a weight [I, O]."""
    if isinstance(x, SparseInputs):
        if x.dense is not None:
            weight, further = torch.split(weight, [x.basis.width, x.dense.shape[1]])
            return linear(x._replace(dense=None), weight, bias) + x.dense @ further
        product: Tensor = _SparseLinear.apply(weight, bias, x)  # type: ignore[no-untyped-call]
        return product
    check_matrix(x, weight.shape[0])
    return torch.addmm(bias, x, weight)


class _SparseLinear(torch.autograd.Function):
    """`linear` of sparse inputs."""

    @staticmethod
    def forward(weight: Tensor, bias: Tensor, x: SparseInputs) -> Tensor:
        product = torch.addmm(bias, x.mode_values.to(weight.dtype), weight.index_select(0, x.mode_inputs))
        return product.add_(x.coefficients @ (x.basis @ weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, SparseInputs], output: Tensor) -> None:
        *_, ctx.x = inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x = ctx.x
        weight_gradient = x.basis.transposed @ (x.coefficients.transposed @ gradient.contiguous())
        # The inputs of the most frequent levels have no coefficients, so their rows are 0 until here.
        weight_gradient.index_copy_(0, x.mode_inputs, x.mode_values.to(gradient.dtype).T @ gradient)
        return weight_gradient, gradient.sum(0), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, Any], weight: Tensor, bias: Tensor, x: SparseInputs
    ) -> tuple[Tensor, int]:
        """The weights of replicas [R, I, O] become the columns of one matrix [I, R*O]."""

        def by_replica(tensor: Tensor, dim: int | None) -> Tensor:  # dim None: all replicas share the tensor
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        weight, bias = by_replica(weight, in_dims[0]).movedim(0, 1), by_replica(bias, in_dims[1])
        product: Tensor = _SparseLinear.apply(weight.flatten(1), bias.flatten(), x)  # type: ignore[no-untyped-call]
        return torch.unflatten(product, 1, bias.shape), 1
