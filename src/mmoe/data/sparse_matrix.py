"""Sparse matrices whose products are fast on a CPU.

A matrix has R rows, W columns and Z entries. O columns of a dense matrix.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag


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
        # The sum must stay int32, which is faster than int64. It would not with uint32, so the minus makes
        # numpy choose a signed type.
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
