"""Codes and numerics to the network's input x, on the device.

B batch, C categorical columns, M numeric columns, L levels of all columns, I inputs.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.checks import check_integers, check_probabilities
from mmoe.data.encode import Rows
from mmoe.data.schema import Schema
from mmoe.models.sparse import Entries, SparseInputs
from mmoe.models.states import Bins, BinsAndValues, Levels, Scores, States

SPARSE_ROWS = 64  # of a batch, from which on sums are faster than a product


class OneHot(nn.Module):
    """One input for each level of the training file; an unseen level is all zeros.

    Shape:
        codes: [B, C]; output: [B, L].
    """

    states = Levels

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.num_outputs = schema.num_levels
        self.columns = [i for i, column in enumerate(schema.categorical) for _ in column.levels]

    def forward(self, codes: Tensor) -> Tensor:
        """Zeros, with a one at each code."""
        dtype = torch.get_default_dtype()
        if not self.num_outputs:
            return codes.to(dtype)  # [B, 0]; vmap has no batching rule for what follows
        # Unseen levels have the code L: a column for them is written, then left out.
        x = codes.new_zeros(codes.shape[0], self.num_outputs + 1, dtype=dtype)
        return x.scatter_(1, codes.long(), 1.0)[:, :-1]


class LevelEmbedding(nn.Module):
    """A learned vector for each level; an unseen level is the zero vector.

    Shape:
        codes: [B, C]; output: [B, C * size].

    Raises:
        ValueError: `size` is below 1.
    """

    def __init__(self, schema: Schema, size: int) -> None:
        super().__init__()
        check_integers(1, size=size)
        self.num_outputs = len(schema.categorical) * size
        self.columns = [i for i in range(len(schema.categorical)) for _ in range(size)]
        self.vectors = nn.Embedding(schema.num_levels + 1, size, padding_idx=schema.num_levels)

    def forward(self, codes: Tensor) -> Tensor:
        """The vectors of a row's levels, side by side."""
        vectors: Tensor = self.vectors(codes.long())
        return vectors.flatten(1)  # [B, C * size]


class Standardize(nn.Module):
    """z-scores, by the mean and deviation of the training file.

    Shape:
        numerics: [B, M]; output: [B, M].
    """

    states = Scores

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.num_outputs = len(schema.numeric)
        self.columns = list(range(self.num_outputs))
        self.register_buffer("mean", torch.tensor([column.mean for column in schema.numeric]))
        self.register_buffer("std", torch.tensor([column.std for column in schema.numeric]))

    def forward(self, numerics: Tensor) -> Tensor:
        """Subtract the mean, divide by the deviation."""
        return (numerics - self.mean) / self.std


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding (Gorishniy et al., NeurIPS 2022, equation 1), by quantile bins.

    A number fills the bins below it with 1 and its own bin in part. It equals
    `rtdl_num_embeddings.PiecewiseLinearEncoding`, but indexes with no boolean mask: that waits for the GPU,
    and cannot be vmapped.

    Shape:
        numerics: [B, M]; output: [B, number of bins of all columns].
    """

    states = Bins

    column: Tensor
    scale: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        scales, shifts, lows, highs = [], [], [], []
        for numeric in schema.numeric:
            edges = torch.tensor(numeric.bins)
            width = edges.diff()
            low, high = torch.zeros_like(width), torch.ones_like(width)
            low[0], high[-1] = -torch.inf, torch.inf  # beyond the outer edges it goes on linearly
            scales.append(1 / width)
            shifts.append(-edges[:-1] / width)
            lows.append(low)
            highs.append(high)
        self.num_outputs = sum(len(scale) for scale in scales)
        self.columns = [i for i, scale in enumerate(scales) for _ in scale]
        none = [torch.empty(0)]
        self.register_buffer("column", torch.tensor(self.columns, dtype=torch.long))
        self.register_buffer("scale", torch.cat(scales or none))
        self.register_buffer("shift", torch.cat(shifts or none))
        self.register_buffer("low", torch.cat(lows or none))
        self.register_buffer("high", torch.cat(highs or none))

    def forward(self, numerics: Tensor) -> Tensor:
        """The share of each bin that the number fills."""
        x = numerics.index_select(1, self.column)
        return torch.addcmul(self.shift, self.scale, x).clamp(self.low, self.high)


class PiecewiseLinearAndValues(nn.Module):
    """`PiecewiseLinear` bins, and one input for each number that is frequent in the training file.

    Some numbers mean more than those beside them, as sums of money do that a law names; trees find them.

    Shape:
        numerics: [B, M]; output: [B, number of bins and frequent values of all columns].
    """

    states = BinsAndValues

    column: Tensor
    value: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.bins = PiecewiseLinear(schema)
        columns = [i for i, numeric in enumerate(schema.numeric) for _ in numeric.values]
        values = [value for numeric in schema.numeric for value in numeric.values]
        self.register_buffer("column", torch.tensor(columns, dtype=torch.long))
        self.register_buffer("value", torch.tensor(values))
        self.num_outputs = self.bins.num_outputs + len(values)
        self.columns = self.bins.columns + columns

    def forward(self, numerics: Tensor) -> Tensor:
        """The shares of the bins, then a one at each frequent value."""
        equal = numerics.index_select(1, self.column) == self.value
        return torch.cat([self.bins(numerics), equal.to(numerics.dtype)], dim=1)


def forbid_sums(module: nn.Module) -> None:
    """Have all `Inputs` of a module give tensors: what vmap, torch.compile and models of others take."""
    for part in module.modules():
        if isinstance(part, Inputs):
            part.sparse = False


class Inputs(nn.Module):
    """Categorical and numeric inputs side by side.

    Args:
        schema: the data set's.
        categorical: `OneHot`, or `LevelEmbedding` with its size.
        numeric: `Standardize`, `PiecewiseLinear` or `PiecewiseLinearAndValues`.
        dropout: share of columns that a row loses in training: all inputs that such a column gives are 0.

    Raises:
        ValueError: a dropout outside [0, 1).

    `columns` of an encoder are the numbers of the columns that its outputs are of.

    On a CPU many rows are left sparse, for the first layer to take the faster way: see `sparse`.

    Shape:
        codes: [B, C]; numerics: [B, M]; or what `encode_once` made of them. output x: [B, I], I =
        `num_outputs`, or as `SparseInputs`.
    """

    column: Tensor

    def __init__(
        self,
        schema: Schema,
        categorical: Callable[[Schema], nn.Module] = OneHot,
        numeric: Callable[[Schema], nn.Module] = PiecewiseLinear,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_probabilities(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        encoders: list[Any] = [categorical(schema), numeric(schema)]
        self.categorical, self.numeric = encoders
        self.num_columns = len(schema.categorical) + len(schema.numeric)
        levels, numbers = torch.tensor(self.categorical.columns), torch.tensor(self.numeric.columns)
        column = torch.cat([levels, len(schema.categorical) + numbers]).long()
        self.register_buffer("column", column, persistent=False)
        self.num_outputs: int = sum(encoder.num_outputs for encoder in encoders)
        self._schema = schema
        # Not those that a subclass inherits: its outputs are others.
        self._kinds: list[Any] = [vars(type(encoder)).get("states") for encoder in encoders]
        self.sparse = all(self._kinds) and len(schema.categorical) > 0

    @cached_property
    def _states(self) -> States:
        of_levels, of_numbers = self._kinds
        return States(of_levels(self._schema.categorical), of_numbers(self._schema.numeric))

    def encode_once(self, rows: Rows, batch_size: int) -> Rows:
        """The rows [N], encoded where every step would make the same of them.

        See `States.encode`.
        """
        if not self._takes_sums(batch_size, rows.numerics) or self.dropout.p:
            return rows
        return self._states.encode(rows)

    def dense(self, codes: Tensor, numerics: Tensor) -> Tensor:
        """All inputs as one tensor, [B, I]."""
        return torch.cat([self.categorical(codes), self.numeric(numerics)], dim=1)

    def _takes_sums(self, num_rows: int, numerics: Tensor) -> bool:
        whole = numerics.dtype in (torch.float32, torch.float64)  # others are rounded, as their bins are
        possible = whole and numerics.device.type == "cpu" and not numerics.requires_grad
        return self.sparse and possible and num_rows >= SPARSE_ROWS

    def forward(self, codes: Tensor | Entries, numerics: Tensor) -> Tensor | SparseInputs:
        """Encode both and join them."""
        if isinstance(codes, Entries):
            return self._states.sparse_inputs(codes, numerics)
        drops = self.training and self.dropout.p > 0
        if not torch.compiler.is_compiling() and not drops and self._takes_sums(len(codes), numerics):
            return self._states.sparse_inputs(*self._states.of(codes, numerics))
        x = self.dense(codes, numerics)
        if drops:
            kept = self.dropout(x.new_ones(x.shape[0], self.num_columns))  # [B, C + M]
            x = x * kept.index_select(1, self.column)
        return x
