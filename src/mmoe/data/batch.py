"""Rows as tensors; a batch is some of the rows.

N rows, B batch, C categorical columns, M numeric columns, T tasks, R replicas, S coefficients.
"""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows as tensors. If R replicas have different rows, each tensor has R as its first dimension.

    Shape:
        levels: [N, C], integers. The levels of all columns are numbered in one sequence, column by column;
            an unseen level is `schema.num_levels` in every column.
        numbers: [N, M], float32, unscaled as in the file.
        labels: [N, T], float32; those of binary tasks are 0 or 1.
        sparse: [N, S], these rows as a sparse matrix that the input layer computed once for all training
            rows (`Inputs.encode_rows`); None: the input layer computes its inputs from levels and numbers.
    """

    levels: Tensor
    numbers: Tensor
    labels: Tensor
    sparse: Any = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to levels, numbers and labels; the result has no sparse matrix."""
        return Batch(function(self.levels), function(self.numbers), function(self.labels))


def take(rows: Batch, index: Tensor) -> Batch:
    """The rows at the positions `index` [K], in its order."""
    sparse = None if rows.sparse is None else rows.sparse.index_select(index)
    return rows.map(lambda tensor: tensor.index_select(-2, index))._replace(sparse=sparse)


def split(rows: Batch, size: int, count: int) -> Iterator[Batch]:
    """`count` batches of `size` rows, without copying them; the last one has the rest."""
    sizes = [size] * (count - 1)
    sizes.append(rows.labels.shape[-2] - sum(sizes))
    tensors = (torch.split(tensor, sizes, -2) for tensor in rows[:3])
    sparse = repeat(None, count) if rows.sparse is None else rows.sparse.split(sizes)
    return map(Batch, *tensors, sparse)
