"""A linear layer of rows that are mostly zeros: sums of its weight's rows, not a full product.

B batch, N rows, I inputs, O outputs, S states, C categorical columns; a matrix has R rows, W columns and Z
entries that are not 0.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag

from mmoe.arguments import check_matrix


class Bags(NamedTuple):
    """A sparse matrix [R, W] by rows.

    Shape:
        starts: [R + 1], where a row's entries begin; columns, values: [Z].
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> "Bags":
        """Those of scipy's."""
        return cls(*map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data)))

    def part(self, first: int, last: int, begin: int, end: int) -> "Bags":
        """The rows from `first` to `last`, whose entries are those from `begin` to `end`."""
        return Bags(self.starts[first : last + 1] - begin, self.columns[begin:end], self.values[begin:end])

    def __matmul__(self, dense: Tensor) -> Tensor:
        """The product [R, O] with a matrix [W, O]: faster than scipy's and torch's sparse ones."""
        values = self.values.to(dense.dtype)
        return embedding_bag(
            self.columns, dense, self.starts, mode="sum", per_sample_weights=values, include_last_offset=True
        )


class Entries(NamedTuple):
    """A sparse matrix [R, W] by rows, and the transposed one [W, R] by rows."""

    forth: Bags
    back: Bags

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> "Entries":
        """Those of scipy's."""
        return cls(Bags.of(matrix), Bags.of(matrix.T.tocsr()))


class EncodedRows:
    """Rows as a sparse matrix [N, S], to make batches of as of a tensor."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        self.matrix = matrix

    def index_select(self, _: int, index: Tensor) -> "EncodedRows":
        """The rows at the positions `index`."""
        return EncodedRows(self.matrix[index.numpy()])

    def split(self, sizes: Sequence[int], _: int) -> list[Entries]:
        """Batches of these sizes. All are transposed at once: for each it would take a while of Python."""
        matrix, width = self.matrix, self.matrix.shape[1]
        rows = np.cumsum([0, *sizes])
        ends = matrix.indptr[rows]
        counts = np.diff(ends)
        firsts = np.arange(len(sizes)) * width
        if len(sizes) * width <= np.iinfo(np.int32).max:  # the numbers of the matrix, which would be copied
            firsts = firsts.astype(np.int32)
        apart = matrix.indices + np.repeat(firsts, counts)
        shape = (matrix.shape[0], len(sizes) * width)
        columns = sparse.csr_array((matrix.data, apart, matrix.indptr), shape=shape).tocsc()
        columns.indices -= np.repeat(rows[:-1], counts).astype(columns.indices.dtype)
        forth, back = Bags.of(matrix), Bags.of(columns)
        by_rows = zip(pairwise(rows.tolist()), pairwise(ends.tolist()), strict=True)
        return [
            Entries(forth.part(*some, *entries), back.part(i * width, (i + 1) * width, *entries))
            for i, (some, entries) in enumerate(by_rows)
        ]


class SparseInputs(NamedTuple):
    """Inputs [B, I] as a product: the states that rows are in, and the inputs that each state gives.

    Rows are in few states, of which some give many inputs: see `states`. Inputs that are often 1 are apart.

    Shape:
        rows: [B, S]; states: [S, I]; common: [B, C], whether such an input is 1; which: [C], what inputs they
        are: no state of a row gives them.
    """

    rows: Entries
    states: Entries
    common: Tensor
    which: Tensor


def linear(x: Tensor | SparseInputs, weight: Tensor, bias: Tensor) -> Tensor:
    """einsum("bi,io->bo", x, weight) + bias of inputs [B, I] and a weight [I, O]."""
    if isinstance(x, SparseInputs):
        product: Tensor = _SparseProduct.apply(weight, bias, x)  # type: ignore[no-untyped-call]
        return product
    check_matrix(x, weight.shape[0])
    return torch.addmm(bias, x, weight)


class _SparseProduct(torch.autograd.Function):
    """`SparseInputs` [B, I] times a weight [I, O], plus a bias [O], by sums of rows in both directions."""

    @staticmethod
    def forward(weight: Tensor, bias: Tensor, x: SparseInputs) -> Tensor:
        common = torch.addmm(bias, x.common.to(weight.dtype), weight.index_select(0, x.which))
        return common.add_(x.rows.forth @ (x.states.forth @ weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, SparseInputs], output: Tensor) -> None:
        ctx.x = inputs[2]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, states, common, which = ctx.x
        of_weight = states.back @ (rows.back @ gradient.contiguous())
        of_weight.index_copy_(0, which, common.to(gradient.dtype).T @ gradient)
        return of_weight, gradient.sum(0), None
