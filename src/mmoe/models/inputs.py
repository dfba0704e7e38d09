"""Encode levels and numbers as the network's inputs x.

B batch, N rows, C categorical columns, M numeric columns, L levels of all columns, I inputs.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmoe.arguments import check_integers, check_probabilities
from mmoe.data.batch import Batch
from mmoe.data.check_levels import INTEGERS, check_levels
from mmoe.data.schema import Numeric, Schema
from mmoe.errors import UserError
from mmoe.models.sparse_inputs import (
    Bins,
    SparseEncoder,
    SparseInputs,
    SparseMatrix,
    Values,
    ZScores,
    float32,
)

MIN_SPARSE_ROWS = 64  # in smaller batches the dense product is faster
MAX_EDGE = 2.0**14  # bin widths; from larger edges on, rounding would change shares by more than 0.001
MAX_NUMBER = 1e38  # the difference of two larger numbers may overflow
MAX_INPUT = 1e30  # products of larger inputs may overflow


class OneHot(nn.Module):
    """One input for each level of the training file; an unseen level is all zeros.

    Shape:
        levels: [B, C]; output: [B, L].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.num_outputs = schema.num_levels
        self.columns = [i for i, column in enumerate(schema.categorical) for _ in column.levels]

    def forward(self, levels: Tensor) -> Tensor:
        if not self.num_outputs:
            return levels[:, :0].float()  # [B, 0]; vmap has no batching rule for what follows
        # Unseen levels have the code L: they set an additional input, which is then cut off.
        x = levels.new_zeros(levels.shape[0], self.num_outputs + 1, dtype=torch.float32)
        return x.scatter_(1, levels.long(), 1.0)[:, :-1]


class LevelEmbedding(nn.Module):
    """A learned vector for each level; an unseen level is the zero vector.

    Shape:
        levels: [B, C]; output: [B, C * size], the vectors of a row side by side.

    Raises:
        ArgumentError: `size` is below 1.
    """

    def __init__(self, schema: Schema, size: int) -> None:
        super().__init__()
        (size,) = check_integers(1, size=size)
        self.num_outputs = len(schema.categorical) * size
        self.columns = [i for i in range(len(schema.categorical)) for _ in range(size)]
        self.vectors = nn.Embedding(schema.num_levels + 1, size, padding_idx=schema.num_levels)

    def forward(self, levels: Tensor) -> Tensor:
        vectors: Tensor = self.vectors(levels.long())
        return vectors.flatten(1)  # [B, C * size]


class Standardize(nn.Module):
    """z-scores, with the mean and the standard deviation of the training file.

    Shape:
        numbers: [B, M]; output: [B, M].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.num_outputs = len(schema.numeric)
        self.columns = list(range(self.num_outputs))
        self.mean = nn.Buffer(float32([column.mean for column in schema.numeric]))
        self.std = nn.Buffer(float32([column.std for column in schema.numeric]))

    def forward(self, numbers: Tensor) -> Tensor:
        return (numbers - self.mean) / self.std


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding by quantile bins (Gorishniy et al., NeurIPS 2022, equation 1).

    The inputs of bins below a number are 1, and that of its own bin is the share that it fills; beyond the
    outer edges the outer bins go on linearly. It equals `rtdl_num_embeddings.PiecewiseLinearEncoding`, but
    without a boolean mask as an index, which would synchronise with the GPU and cannot be vmapped.

    Shape:
        numbers: [B, M]; output: [B, number of bins of all columns].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        none = float32([])
        scales, shifts, lows, highs, origins = [none], [none], [none], [none], []
        self.columns = []
        for i, numeric in enumerate(schema.numeric):
            edges = float32(numeric.bins)
            width = edges.diff()
            low, high = torch.zeros_like(width), torch.ones_like(width)
            low[0], high[-1] = -torch.inf, torch.inf
            # If edges are large and bins narrow, scale * x + shift cancels; numbers then count from edges[0].
            origin = edges[0] if (edges[:-1] / width).abs().max() > MAX_EDGE else torch.zeros(())
            scales.append(1 / width)
            shifts.append((origin - edges[:-1]) / width)
            lows.append(low)
            highs.append(high)
            origins.append(float(origin))
            self.columns += [i] * len(width)
        self.num_outputs = len(self.columns)
        self.column = nn.Buffer(torch.tensor(self.columns, dtype=torch.long))
        self.scale = nn.Buffer(torch.cat(scales))
        self.shift = nn.Buffer(torch.cat(shifts))
        self.low = nn.Buffer(torch.cat(lows))
        self.high = nn.Buffer(torch.cat(highs))
        self.origin = nn.Buffer(float32(origins))

    def forward(self, numbers: Tensor) -> Tensor:
        x = (numbers - self.origin).index_select(1, self.column)
        return torch.addcmul(self.shift, self.scale, x).clamp(self.low, self.high)


class PiecewiseLinearAndValues(nn.Module):
    """`PiecewiseLinear` bins, then one input for each number that is frequent in the training file.

    Such a number may mean something that its neighbours do not, as an amount that a law sets.

    Shape:
        numbers: [B, M]; output: [B, number of bins and frequent values of all columns].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.bins = PiecewiseLinear(schema)
        columns = [i for i, numeric in enumerate(schema.numeric) for _ in numeric.values]
        values = [value for numeric in schema.numeric for value in numeric.values]
        self.column = nn.Buffer(torch.tensor(columns, dtype=torch.long))
        self.value = nn.Buffer(float32(values))
        self.num_outputs = self.bins.num_outputs + len(values)
        self.columns = self.bins.columns + columns

    def forward(self, numbers: Tensor) -> Tensor:
        equal = numbers.index_select(1, self.column) == self.value
        return torch.cat([self.bins(numbers), equal.to(numbers.dtype)], dim=1)


# What `SparseEncoder` needs for each numeric encoder. Subclasses are not listed, because their inputs differ.
SPARSE_NUMBERS: dict[type, Sequence[type[ZScores | Bins | Values]]] = {
    Standardize: [ZScores],
    PiecewiseLinear: [Bins],
    PiecewiseLinearAndValues: [Bins, Values],
}


def use_dense_inputs(module: nn.Module) -> None:
    """Let all `Inputs` of a module give tensors, which torch.compile and other models need."""
    for part in module.modules():
        if isinstance(part, Inputs):
            part.may_be_sparse = False


class Inputs(nn.Module):
    """Categorical and numeric inputs side by side.

    An unseen level and a missing number (NaN) give zeros, and an infinite number gives NaN. A number whose
    inputs would overflow is replaced by the largest one whose inputs do not.

    Args:
        schema: the data set's.
        categorical: `OneHot`, or `LevelEmbedding` with its size.
        numeric: `Standardize`, `PiecewiseLinear` or `PiecewiseLinearAndValues`.
        dropout: the share of columns that are dropped in training, for each row separately; all inputs of a
            dropped column are 0.

    An encoder has `num_outputs`, and `columns`: the column that each output is computed from. Inputs are
    computed in float32 and then cast to the module's type, because half precision cannot hold raw numbers.

    Raises:
        ArgumentError: a dropout outside [0, 1).
        UserError: in `forward`, rows of another shape; on a CPU, outside of vmap and torch.compile, also a
            code that is neither a level of its column nor the unseen one.

    Shape:
        levels: [B, C], integers; numbers: [B, M]; sparse: None or [B, S], see `Batch`.
        output x: [B, I], I = `num_outputs`; on a CPU `SparseInputs` for large batches.
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
        encoders: list[Any] = [categorical(schema), numeric(schema)]
        self.categorical, self.numeric = encoders
        self.num_outputs: int = sum(encoder.num_outputs for encoder in encoders)
        self.num_columns = len(schema.categorical) + len(schema.numeric)
        levels, numbers = (torch.tensor(encoder.columns).long() for encoder in encoders)
        column = torch.cat([levels, len(schema.categorical) + numbers])
        self.column = nn.Buffer(column, persistent=False)  # of each input
        self.number = nn.Buffer(numbers, persistent=False)  # the column of each numeric input
        ranges = [_range_without_overflow(column) for column in schema.numeric]
        self.smallest = nn.Buffer(float32([low for low, _ in ranges]), persistent=False)
        self.largest = nn.Buffer(float32([high for _, high in ranges]), persistent=False)
        self.dtype = torch.get_default_dtype()
        known = type(self.categorical) is OneHot and type(self.numeric) in SPARSE_NUMBERS
        has_levels = len(schema.categorical) > 0 and all(column.levels for column in schema.categorical)
        self.may_be_sparse = known and has_levels
        # The result of `check`, or None to check each batch. vmap cannot check, so `Replicas` does it before.
        self.numbers_in_range: bool | None = None
        self._schema = schema
        self._row_shapes = (len(schema.categorical),), (len(schema.numeric),)
        ends = torch.tensor([0, *(len(column.levels) for column in schema.categorical)]).cumsum(0)
        # These are not buffers, because reading a buffer takes time in each step and only CPUs need them.
        self._level_bounds, self._number_bounds = (ends[:-1], ends[1:] - 1), (self.smallest, self.largest)

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
        self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None = None
    ) -> Tensor | SparseInputs:
        """Encode levels and numbers, and join them."""
        if sparse is not None and self.may_be_sparse:
            return self._sparse_encoder.inputs(levels, sparse)
        levels, numbers = self._convert(levels, numbers)
        in_range = self.numbers_in_range
        if in_range is None:
            in_range = self._check(levels, numbers)
        drops = self.training and self.dropout.p > 0
        if in_range and not drops and self._takes_sparse(levels.shape[0], numbers):
            return self._sparse_encoder.inputs(levels, self._sparse_encoder.encode(levels, numbers))
        x = self.dense(levels, numbers, in_range)
        if drops:
            kept = self.dropout(x.new_ones(x.shape[0], self.num_columns))  # [B, C + M]
            x = x * kept.index_select(1, self.column)
        return x

    def dense(self, levels: Tensor, numbers: Tensor, in_range: bool = False) -> Tensor:
        """All inputs as one tensor, [B, I]; with `in_range` no number is missing, infinite or very large."""
        numeric = self.numeric(numbers if in_range else numbers.clamp(self.smallest, self.largest))
        if not in_range:
            given = numbers.index_select(1, self.number)
            numeric = numeric.masked_fill(given.isinf(), torch.nan).masked_fill(given.isnan(), 0.0)
        x = torch.cat([self.categorical(levels), numeric], dim=1)
        return x if x.dtype == self.dtype else x.to(self.dtype)

    def encode_rows(self, rows: Batch, batch_size: int) -> Batch:
        """The rows with their sparse matrix, if each batch of this size would compute the same one."""
        possible = self._takes_sparse(batch_size, rows.numbers) and not self.dropout.p
        if not possible or not self.check(rows.levels, rows.numbers):
            return rows
        if torch.iinfo(rows.levels.dtype).max < self._schema.num_levels:
            return rows  # the comparison with the most frequent levels would wrap around
        return rows._replace(sparse=self._sparse_encoder.encode(rows.levels, rows.numbers.float()))

    def check(self, levels: Tensor, numbers: Tensor) -> bool:
        """Whether all numbers are known to be present and small enough; UserError for invalid rows."""
        return self._check(*self._convert(levels, numbers))

    @cached_property
    def _sparse_encoder(self) -> SparseEncoder:
        return SparseEncoder(self._schema, SPARSE_NUMBERS[type(self.numeric)])

    def _takes_sparse(self, num_rows: int, numbers: Tensor) -> bool:
        # In half precision dense inputs are rounded, and sparse inputs would be rounded differently.
        is_full = self.dtype in (torch.float32, torch.float64)
        possible = is_full and numbers.device.type == "cpu" and not numbers.requires_grad
        return self.may_be_sparse and possible and num_rows >= MIN_SPARSE_ROWS

    def _convert(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as int64 and numbers as float32, after a check of their shapes."""
        shapes = levels.shape[1:], numbers.shape[1:]
        if shapes != self._row_shapes or levels.dtype not in INTEGERS or levels.shape[0] != numbers.shape[0]:
            (num_levels,), (num_numbers,) = self._row_shapes
            raise UserError(
                f"levels [B, {num_levels}], integers, and numbers [B, {num_numbers}]: must be rows of these"
                f" shapes, are {list(levels.shape)} of {levels.dtype} and {list(numbers.shape)}"
            )
        return levels.long(), numbers.float()

    def _check(self, levels: Tensor, numbers: Tensor) -> bool:
        if torch.compiler.is_compiling() or numbers.device.type != "cpu":
            return False
        if not torch.equal(torch.clamp(levels, *self._level_bounds), levels):
            check_levels(levels, self._schema)
        return torch.equal(torch.clamp(numbers, *self._number_bounds), numbers)


def _range_without_overflow(column: Numeric) -> tuple[float, float]:
    """The smallest and the largest number whose inputs are at most MAX_INPUT."""
    narrowest = min(column.std, min(b - a for a, b in pairwise(column.bins)))
    reach = MAX_INPUT * narrowest
    smallest = max(min(column.mean, column.bins[0]) - reach, -MAX_NUMBER)
    largest = min(max(column.mean, column.bins[-1]) + reach, MAX_NUMBER)
    return min(smallest, MAX_NUMBER), max(largest, -MAX_NUMBER)
