"""The first layer as products of sparse matrices, which on a CPU is faster than one dense product.

B batch, C columns with one level per row, I inputs, O outputs, S rows of the basis, D dense inputs; a
matrix has R rows, W columns and Z entries.

A row has hundreds of inputs, but a few coefficients describe them. The inputs x [B, I] are factored:

    x = coefficients [B, S] @ basis [S, I] + the input of each column's most frequent level

Both matrices are sparse, and the basis is the same for all rows. A one-hot level needs one coefficient. A
number that fills 30 of its bins has 30 ones in x, but needs at most 3 coefficients, because the basis has
rows for several full bins at once. The layer computes coefficients @ (basis @ weight): for each row it adds
up a few rows of a matrix. The gradient of the weight uses the transposed matrices in the same way. Each
column's most frequent level is handled densely: most rows have it, and for so many entries a dense product
is faster.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag

from mmoe.errors import UserError


class SparseMatrix:
    """A sparse matrix [R, W] in CSR format.

    Shape:
        row_offsets: [R + 1], where the entries of each row begin; columns, values: [Z].
    """

    def __init__(self, row_offsets: Tensor, columns: Tensor, values: Tensor, width: int) -> None:
        self.row_offsets, self.columns, self.values, self.width = row_offsets, columns, values, width

    @classmethod
    def from_scipy(cls, matrix: sparse.csr_array) -> "SparseMatrix":
        """The same matrix, which shares its memory with scipy's."""
        offsets, columns, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
        return cls(offsets, columns, values, matrix.shape[1])

    def to_scipy(self) -> sparse.csr_array:
        """The same matrix for scipy, which can transpose and index it; torch cannot."""
        arrays = (self.values.numpy(), self.columns.numpy(), self.row_offsets.numpy())
        return sparse.csr_array(arrays, shape=(len(self.row_offsets) - 1, self.width))

    @cached_property
    def transposed(self) -> "SparseMatrix":
        """The transposed matrix [W, R], computed when it is first needed."""
        return SparseMatrix.from_scipy(self.to_scipy().T.tocsr())

    def __matmul__(self, dense: Tensor) -> Tensor:
        """The product [R, O] with a matrix [W, O]."""
        # This is faster than the sparse products of scipy and torch.
        options: Any = {"mode": "sum", "include_last_offset": True}
        weights = self.values.to(dense.dtype)
        return embedding_bag(self.columns, dense, self.row_offsets, per_sample_weights=weights, **options)

    def index_select(self, index: Tensor) -> "SparseMatrix":
        """The rows at the positions `index`."""
        return SparseMatrix.from_scipy(self.to_scipy()[index.numpy()])

    def split(self, sizes: Sequence[int], with_transposed: bool = True) -> list["SparseMatrix"]:
        """Split the rows into consecutive parts of these sizes; compute `transposed` of each if asked to.

        All parts are transposed in one scipy call, because a call has a large overhead. For this, the parts
        are placed on a block diagonal: the columns of part i are shifted by i * W.
        """
        first_rows = np.cumsum([0, *sizes])
        parts = self._parts(first_rows, [self.width] * len(sizes))
        if not with_transposed:
            return parts
        first_columns = np.arange(len(sizes) + 1) * self.width
        num_entries = np.diff(self.row_offsets.numpy()[first_rows])
        # int32 is faster than int64. The minus makes numpy choose a signed type.
        dtype = np.min_scalar_type(-first_columns[-1])
        columns = self.columns.numpy() + np.repeat(first_columns[:-1].astype(dtype), num_entries)
        arrays = (self.values.numpy(), columns, self.row_offsets.numpy())
        transposed = sparse.csr_array(arrays, shape=(first_rows[-1], first_columns[-1])).T.tocsr()
        transposed.indices -= np.repeat(first_rows[:-1], num_entries).astype(transposed.indices.dtype)
        transposed_parts = SparseMatrix.from_scipy(transposed)._parts(first_columns, sizes)
        for part, transposed_part in zip(parts, transposed_parts, strict=True):
            part.transposed = transposed_part
        return parts

    def _parts(self, first_rows: np.ndarray, widths: Sequence[int]) -> list["SparseMatrix"]:
        """The rows between consecutive `first_rows`, as matrices of these widths."""
        first_entries = self.row_offsets.numpy()[first_rows]
        num_entries = np.diff(first_entries).tolist()
        columns, values = torch.split(self.columns, num_entries), torch.split(self.values, num_entries)
        bounds = zip(pairwise(first_rows.tolist()), first_entries[:-1].tolist(), strict=True)
        offsets = [self.row_offsets[first : last + 1] - entry for (first, last), entry in bounds]
        return list(map(SparseMatrix, offsets, columns, values, widths))


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


def check_matrix(x: Any, width: int) -> None:
    """Check that a model's input is a matrix [B, width]."""
    if x.ndim != 2 or x.shape[1] != width:
        raise UserError(f"x of shape {list(x.shape)}: must be [B, {width}], one row of inputs per example")


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
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: SparseInputs) -> Tensor:
        ctx.x, ctx.mode_values = x, x.mode_values.to(weight.dtype)
        product = torch.addmm(bias, ctx.mode_values, weight.index_select(0, x.mode_inputs))
        return product.add_(x.coefficients @ (x.basis @ weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x = ctx.x
        weight_gradient = x.basis.transposed @ (x.coefficients.transposed @ gradient.contiguous())
        # The inputs of the most frequent levels have no coefficients, so their rows are 0 until here.
        weight_gradient.index_copy_(0, x.mode_inputs, ctx.mode_values.to(gradient.dtype).T @ gradient)
        return weight_gradient, gradient.sum(0), None


def float32(values: Sequence[float]) -> Tensor:
    """The values as a tensor."""
    return torch.tensor(values, dtype=torch.float32)
