"""Rows as tensors: all rows of a data set, or a batch of them.

N rows, K chosen rows, P level slots of a row (one for a categorical column, `max_values` for a multi-valued
one), M numeric columns, T tasks, R replicas, S coefficients of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from mmoe.data.schema import Schema
from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.errors import UserError

LEVEL_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32)
# The fields of a Batch that are stored in files.
FIELDS = ("levels", "numbers", "labels", "known", "weights", "groups")


class Batch(NamedTuple):
    """Rows as tensors. If each of R replicas has its own rows, each tensor has R as its first dimension.

    Shape:
        levels: [N, P], integers. The codes of all columns are numbered in one sequence, column by column; a
            level for which its column has no code is `schema.num_codes`. A column has one position, or
            `max_values` if it is multi-valued; those that a row does not use hold `schema.num_codes` too.
        numbers: [N, M], float32, unscaled as in the file, less the column's origin; NaN where missing.
        labels: [N, T], float32: 0 or 1 for a binary task, the number of the class for a multiclass task, the
            number in its own unit for a regression or a count, and 0 where a label is unknown.
        known: [N, T], bool, whether each label is known. None: all are.
        weights: [N, T], float32, the weights of the rows in each task's loss. None: all are 1.
        sparse: [N, S], the coefficients of the rows as a matrix; see `models.sparse_inputs`.
            `Inputs.encode_rows` computes them before the steps: once for rows in memory, in every epoch for
            rows in shards. None: the input layer encodes the rows in each step.
        groups: [N, 1], int64, equal for rows of one group, such as a user; see `TableData`. None where rows
            have no groups, such as training rows.
    """

    levels: Tensor
    numbers: Tensor
    labels: Tensor
    known: Tensor | None = None
    weights: Tensor | None = None
    sparse: SparseMatrix | None = None
    groups: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to all tensors; the result has no sparse matrix."""
        *tensors, groups = (None if tensor is None else function(tensor) for tensor in self.tensors)
        return Batch._make((*tensors, None, groups))

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All fields but the sparse matrix."""
        return *self[:5], self.groups


def take(rows: Batch, index: Tensor) -> Batch:
    """The rows at the positions `index` [K], in its order."""
    sparse = None if rows.sparse is None else rows.sparse.index_select(index)
    return rows.map(lambda tensor: tensor.index_select(-2, index))._replace(sparse=sparse)


def split(rows: Batch, size: int, count: int, is_training: bool = True) -> Iterator[Batch]:
    """Cut `count` batches of `size` rows, without copying; the last batch holds the remaining rows.

    For training, sparse matrices are also transposed, which the gradient needs.
    """
    sizes = [size] * (count - 1)
    sizes.append(rows.labels.shape[-2] - sum(sizes))
    nothing = repeat(None)
    *tensors, groups = (nothing if one is None else torch.split(one, sizes, -2) for one in rows.tensors)
    sparse = nothing if rows.sparse is None else rows.sparse.split(sizes, is_training)
    return map(Batch, *tensors, sparse, groups)


def concatenate(parts: Sequence[Batch]) -> Batch:
    """Join rows; all parts have the same fields, and none has a sparse matrix."""
    columns = zip(*(part.tensors for part in parts), strict=True)
    *tensors, groups = (None if column[0] is None else torch.cat(column, dim=-2) for column in columns)
    return Batch._make((*tensors, None, groups))


def blank_rows(schema: Schema) -> Batch:
    """Two rows of unseen levels and zeros, for finding the shapes of a network's outputs."""
    return Batch(
        torch.full((2, len(schema.column_of_position)), schema.num_codes),
        torch.zeros(2, len(schema.numeric)),
        torch.zeros(2, len(schema.tasks)),
    )


def level_bounds(schema: Schema) -> tuple[Tensor, Tensor]:
    """The first and the last code at each position of a row's levels, [P] each."""
    offsets, columns = torch.tensor(schema.code_offsets), torch.tensor(schema.column_of_position).long()
    return offsets[:-1][columns], (offsets[1:] - 1)[columns]


def check_levels(levels: Tensor, schema: Schema) -> None:
    """Check that each of the levels [..., N, P] is a code of its column, or the unseen code.

    Raises:
        UserError: names the column and its first invalid code.
    """
    (first, last), unseen = level_bounds(schema), schema.num_codes
    # Comparing in the dtype of the levels is several times faster than converting them to int64.
    dtype = levels.dtype if unseen <= torch.iinfo(levels.dtype).max else torch.int64
    # The unseen code is a tensor, because torch wraps a plain number around to the range of the levels' type.
    bounds = (first, last, torch.full_like(first, unseen))
    low, high, other = (bound.to(levels.device, dtype) for bound in bounds)
    valid = (levels >= low) & (levels <= high) | (levels == other)
    if not valid.all():
        where = (~valid).nonzero()[0].tolist()
        row, position = where[-2:]
        rule = f"must be a code from {first[position]} to {last[position]}, or {unseen} for an unseen level"
        name = schema.categorical[schema.column_of_position[position]].name
        code = levels[tuple(where)].item()
        raise UserError(f"column {name}: {rule}; row {row} is {code}")
