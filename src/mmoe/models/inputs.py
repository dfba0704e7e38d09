"""Encode levels and numbers as the network's inputs x.

B batch, P level slots of a row, C categorical columns, M numeric columns, I inputs, S coefficients of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_probabilities
from mmoe.checks.fields import MAX_MAGNITUDE
from mmoe.data.batch import LEVEL_DTYPES, Batch, check_levels, level_bounds
from mmoe.data.columns import Numeric
from mmoe.data.schema import Schema
from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.errors import UserError
from mmoe.models import sparse_encoders
from mmoe.models.column_encoders import (
    ColumnEmbeddings,
    NumbersByColumn,
    TargetStatistics,
    number_encoder,
)
from mmoe.models.encoders import (
    MAX_INPUT,
    MinMax,
    OneHot,
    PiecewiseLinear,
    PiecewiseLinearAndValues,
    Standardize,
    Unscaled,
    float32,
)
from mmoe.models.sparse_encoders import SparseEncoder
from mmoe.models.sparse_inputs import SparseInputs

MIN_SPARSE_ROWS = 64  # in smaller batches the dense product is faster


# The sparse encoders that together compute the inputs of a numeric encoder. They are looked up by exact type,
# because a subclass may compute other inputs.
SPARSE_COUNTERPARTS: dict[type, Sequence[Callable[[Schema], sparse_encoders.SparseNumbers]]] = {
    Standardize: [partial(sparse_encoders.SparseScaling, Standardize)],
    MinMax: [partial(sparse_encoders.SparseScaling, MinMax)],
    Unscaled: [partial(sparse_encoders.SparseScaling, Unscaled)],
    PiecewiseLinear: [sparse_encoders.SparseBins],
    PiecewiseLinearAndValues: [sparse_encoders.SparseBins, sparse_encoders.SparseValues],
}


class Inputs(nn.Module):
    """All inputs side by side: levels, numbers, missing numbers, learned vectors, and target statistics.

    An unseen level and a missing number (NaN) give zeros, and an infinite number gives NaN. If the training
    rows had missing numbers in a column, one more input is 1 where its number is missing. A number so large
    that its inputs would overflow is clamped. Inputs are computed in float32 and then cast to the module's
    dtype, because half precision cannot hold raw numbers. Columns with a size in the schema are encoded by
    `ColumnEmbeddings`. Those with statistics are encoded by `TargetStatistics`, alone or beside one-hot
    inputs.

    Args:
        schema: the schema of the data set.
        categorical: encoder of the columns that are one-hot in the schema: `OneHot`, or `LevelEmbedding` with
            one size for all.
        numeric: encoder of the numbers whose columns have no encoding of their own in the schema:
            `Standardize`, `MinMax`, `Unscaled`, `PiecewiseLinear` or `PiecewiseLinearAndValues`.
        dropout: probability that a column is dropped in a training row. All inputs of a dropped column are 0.

    Raises:
        ArgumentError: a dropout outside [0, 1).
        UserError: in `forward`, rows of another shape; on a CPU, outside of torch.compile, also a code that
            is neither a level of its column nor the unseen one.

    Shape:
        levels: [B, P], integers; numbers: [B, M]; sparse: None or [B, S], see `Batch`.
        output x: [B, I], I = `num_outputs`. With `allow_sparse`, it is `SparseInputs` where they are faster:
        on a CPU in large batches.
    """

    def __init__(
        self,
        schema: Schema,
        categorical: Callable[[Schema], nn.Module] = OneHot,
        numeric: Callable[[Schema], nn.Module] = PiecewiseLinear,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        (dropout,) = check_probabilities(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        encoders: list[Any] = [
            categorical(schema), number_encoder(schema, numeric), ColumnEmbeddings(schema),
            TargetStatistics(schema),
        ]  # fmt: skip
        self.categorical, self.numeric, self.embeddings, self.statistics = encoders
        missing = torch.tensor([i for i, column in enumerate(schema.numeric) if column.has_missing]).long()
        self.num_outputs: int = sum(encoder.num_outputs for encoder in encoders) + len(missing)
        num_categorical = len(schema.categorical)
        self.num_columns = num_categorical + len(schema.numeric)
        self._schema = schema
        self._row_shapes = (len(schema.column_of_position),), (len(schema.numeric),)
        levels, numbers, *dense = (torch.tensor(encoder.columns).long() for encoder in encoders)
        column = torch.cat([levels, num_categorical + numbers, num_categorical + missing, *dense])
        self.column = nn.Buffer(column, persistent=False)  # the column that each input is computed from
        self.numeric_column = nn.Buffer(numbers, persistent=False)  # of each output of `numeric`
        self.missing_column = nn.Buffer(missing, persistent=False)  # the numeric columns with missing numbers
        ranges = [_range_without_overflow(column) for column in schema.numeric]
        self.smallest = nn.Buffer(float32([low for low, _ in ranges]), persistent=False)
        self.largest = nn.Buffer(float32([high for _, high in ranges]), persistent=False)
        self.dtype = torch.get_default_dtype()
        are_known = all(type(part) in SPARSE_COUNTERPARTS for part, _ in self._number_parts)
        is_one_hot = type(self.categorical) is OneHot and self.categorical.num_outputs > 0
        self._has_sparse_form = is_one_hot and are_known
        self._in_range: bool | None = None  # inside `checked_before_vmap`: the result of `check`
        self._has_missing = len(missing) > 0
        self._may_be_missing = torch.tensor([column.has_missing for column in schema.numeric])
        # The encoders whose inputs stay dense beside sparse ones.
        self._dense = [one for one in (self.embeddings, self.statistics) if one.num_outputs]
        # These are not buffers, because reading a buffer takes time in each step and only CPUs need them.
        self._level_bounds = level_bounds(schema)
        self._number_bounds = self.smallest, self.largest

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast parameters; only move buffers, because half precision would round the scales."""
        buffers = [(part, name, b) for part in self.modules() for name, b in part._buffers.items()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part, name, buffer in buffers:
            moved = part._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                part._buffers[name] = buffer.to(moved.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.column.device)).dtype
        return self

    def forward(
        self,
        levels: Tensor,
        numbers: Tensor,
        sparse: SparseMatrix | None = None,
        allow_sparse: bool = False,
    ) -> Tensor | SparseInputs:
        """Encode levels and numbers, and join them."""
        if allow_sparse and sparse is not None:
            return self._sparse_inputs(levels, sparse)
        levels, numbers = self._convert(levels, numbers)
        in_range = self._check(levels, numbers)
        drops = self.training and self.dropout.p > 0
        has_values = self._in_range is None  # vmap hides the values of rows
        may_encode = allow_sparse and in_range and has_values and not drops
        if may_encode and self._is_sparse_faster(levels.shape[0], numbers):
            return self._sparse_inputs(levels, self._sparse_encoder.encode(levels, numbers))
        x = self.dense(levels, numbers, in_range)
        if drops:
            kept = self.dropout(x.new_ones(x.shape[0], self.num_columns))  # [B, C + M]
            x = x * kept.index_select(1, self.column)
        return x

    def dense(self, levels: Tensor, numbers: Tensor, in_range: bool = False) -> Tensor:
        """All inputs as one tensor, [B, I]; with `in_range`, the numbers have passed `check`."""
        numeric = self.numeric(numbers if in_range else numbers.clamp(self.smallest, self.largest))
        if not in_range or self._has_missing:
            given = numbers.index_select(1, self.numeric_column)
            numeric = numeric.masked_fill(given.isinf(), torch.nan).masked_fill(given.isnan(), 0.0)
        parts = [self.categorical(levels), numeric]
        if self._has_missing:
            parts.append(numbers.index_select(1, self.missing_column).isnan().to(numeric.dtype))
        parts += [encoder(levels).to(numeric.dtype) for encoder in self._dense]
        return torch.cat(parts, dim=1).to(self.dtype)

    def encode_rows(self, rows: Batch, batch_size: int) -> Batch:
        """Add the sparse matrix of the rows, unless dense inputs are faster in batches of this size."""
        possible = self._is_sparse_faster(batch_size, rows.numbers) and not self.dropout.p
        if not possible or not self.check(rows.levels, rows.numbers):
            return rows
        if torch.iinfo(rows.levels.dtype).max < self._schema.num_codes:
            return rows  # `SparseEncoder.inputs` casts the most frequent codes to this dtype; they do not fit
        return rows._replace(sparse=self._sparse_encoder.encode(rows.levels, rows.numbers.float()))

    def check(self, levels: Tensor, numbers: Tensor) -> bool:
        """Check the rows on a CPU. Return True if every number is in range, or missing as in training rows.

        On other devices and in torch.compile, nothing is checked, and the result is False.
        """
        return self._check(*self._convert(levels, numbers))

    @property
    def input_groups(self) -> list[int]:
        """The number of each input's column, negative for `ColumnEmbeddings` and `TargetStatistics`."""
        num_dense = self.embeddings.num_outputs + self.statistics.num_outputs
        is_dense = torch.arange(self.num_outputs) >= self.num_outputs - num_dense
        column = self.column.cpu()
        return torch.where(is_dense, -1 - column, column).tolist()

    def _sparse_inputs(self, levels: Tensor, sparse: SparseMatrix) -> SparseInputs:
        dense = [encoder(levels).to(self.dtype) for encoder in self._dense]
        return self._sparse_encoder.inputs(levels, sparse, torch.cat(dense, 1) if dense else None)

    @cached_property
    def _sparse_encoder(self) -> SparseEncoder:
        parts = [
            (encoder, columns)
            for part, columns in self._number_parts
            for encoder in SPARSE_COUNTERPARTS[type(part)]
        ]
        return SparseEncoder(self._schema, parts, self.categorical.scale)

    @property
    def _number_parts(self) -> list[tuple[nn.Module, Sequence[int]]]:
        """The encoders of numbers, each with the numeric columns that it encodes."""
        if isinstance(self.numeric, NumbersByColumn):
            return list(zip(self.numeric.parts, self.numeric.part_columns, strict=True))
        return [(self.numeric, range(len(self._schema.numeric)))]

    def _is_sparse_faster(self, num_rows: int, numbers: Tensor) -> bool:
        # In half precision dense inputs are rounded, and sparse inputs would be rounded differently.
        is_full = self.dtype in (torch.float32, torch.float64)
        possible = is_full and numbers.device.type == "cpu" and not numbers.requires_grad
        return self._has_sparse_form and possible and num_rows >= MIN_SPARSE_ROWS

    def _convert(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as int64 and numbers as float32, after a check of their shapes."""
        shapes = levels.shape[1:], numbers.shape[1:]
        are_levels = levels.dtype in LEVEL_DTYPES
        if shapes != self._row_shapes or not are_levels or levels.shape[0] != numbers.shape[0]:
            (num_positions,), (num_numbers,) = self._row_shapes
            rule = f"levels must be integers [B, {num_positions}] and numbers [B, {num_numbers}]"
            found = f"{list(levels.shape)} of {levels.dtype} and {list(numbers.shape)}"
            raise UserError(f"{rule}; they are {found}")
        return levels.long(), numbers.float()

    def _check(self, levels: Tensor, numbers: Tensor) -> bool:
        if self._in_range is not None:
            return self._in_range
        if torch.compiler.is_compiling() or numbers.device.type != "cpu":
            return False
        if not torch.equal(torch.clamp(levels, *self._level_bounds), levels):
            check_levels(levels, self._schema)
        if self._has_missing:
            is_expected = numbers.isnan() & self._may_be_missing
            numbers = torch.where(is_expected, self.smallest, numbers)
        clamped = torch.clamp(numbers, *self._number_bounds)
        return torch.equal(clamped, numbers)


@contextmanager
def checked_before_vmap(module: nn.Module, levels: Tensor, numbers: Tensor) -> Iterator[None]:
    """Check rows here, and not again in the `Inputs` of a module, where vmap hides the values of rows.

    Shape:
        levels: [N, P]; numbers: [N, M]: the rows of all replicas.
    """
    parts = [part for part in module.modules() if isinstance(part, Inputs)]
    for part in parts:
        part._in_range = part.check(levels, numbers)
    try:
        yield
    finally:
        for part in parts:
            part._in_range = None


def _range_without_overflow(column: Numeric) -> tuple[float, float]:
    """The range of numbers whose inputs are at most MAX_INPUT; `Unscaled` has its own limit."""
    narrowest = min(column.std, min(b - a for a, b in pairwise(column.bins)))
    reach = MAX_INPUT * narrowest
    smallest = max(min(column.mean, column.bins[0]) - reach, -MAX_MAGNITUDE)
    largest = min(max(column.mean, column.bins[-1]) + reach, MAX_MAGNITUDE)
    # The mean and all bins of a column may lie beyond MAX_MAGNITUDE. `smallest` must not exceed `largest`.
    return min(smallest, MAX_MAGNITUDE), max(largest, -MAX_MAGNITUDE)
