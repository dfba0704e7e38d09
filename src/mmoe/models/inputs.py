"""Codes and numerics to the network's input x, on the device.

B batch, C categorical columns, M numeric columns, L levels of all columns, I inputs.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmoe.arguments import check_integers, check_probabilities
from mmoe.data.check_rows import INTEGERS, check_codes
from mmoe.data.encode import Rows
from mmoe.data.schema import Numeric, Schema
from mmoe.errors import UserError
from mmoe.models.sparse import Entries, SparseInputs
from mmoe.models.states import Bins, BinsAndValues, Levels, Scores, States, float32

SPARSE_ROWS = 64  # of a batch, from which on sums are faster than a product
FAR = 2.0**14  # edges over the width of a bin: beyond it, shares would be off by more than 0.001
LARGEST = 1e38  # of a number: differences of larger ones may overflow
LARGEST_INPUT = 1e30  # products of larger ones may overflow


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
        dtype = torch.float32
        if not self.num_outputs:
            return codes[:, :0].to(dtype)  # [B, 0]; vmap has no batching rule for what follows
        # Unseen levels have the code L: a column for them is written, then left out.
        x = codes.new_zeros(codes.shape[0], self.num_outputs + 1, dtype=dtype)
        return x.scatter_(1, codes.long(), 1.0)[:, :-1]


class LevelEmbedding(nn.Module):
    """A learned vector for each level; an unseen level is the zero vector.

    Shape:
        codes: [B, C]; output: [B, C * size].

    Raises:
        UserError: `size` is below 1.
    """

    def __init__(self, schema: Schema, size: int) -> None:
        super().__init__()
        (size,) = check_integers(1, size=size)
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
        self.register_buffer("mean", float32([column.mean for column in schema.numeric]))
        self.register_buffer("std", float32([column.std for column in schema.numeric]))

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
    origin: Tensor
    near_shift: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        scales, shifts, lows, highs, origins, near_shifts = [], [], [], [], [], []
        for numeric in schema.numeric:
            edges = float32(numeric.bins)
            width = edges.diff()
            low, high = torch.zeros_like(width), torch.ones_like(width)
            low[0], high[-1] = -torch.inf, torch.inf  # beyond the outer edges it goes on linearly
            scales.append(1 / width)
            shifts.append(-edges[:-1] / width)
            lows.append(low)
            highs.append(high)
            # Bins that are narrow for their edges: scale * x and shift would cancel each other's digits.
            origins.append(edges[0] if shifts[-1].abs().max() > FAR else torch.zeros(()))
            near_shifts.append((origins[-1] - edges[:-1]) / width)
        self.num_outputs = sum(len(scale) for scale in scales)
        self.columns = [i for i, scale in enumerate(scales) for _ in scale]
        none = [float32([])]
        self.register_buffer("column", torch.tensor(self.columns, dtype=torch.long))
        self.register_buffer("scale", torch.cat(scales or none))
        self.register_buffer("shift", torch.cat(shifts or none))
        self.register_buffer("low", torch.cat(lows or none))
        self.register_buffer("high", torch.cat(highs or none))
        self.register_buffer("origin", float32([float(origin) for origin in origins]), persistent=False)
        self.register_buffer("near_shift", torch.cat(near_shifts or none), persistent=False)
        self._is_far = bool(self.origin.any())

    def forward(self, numerics: Tensor) -> Tensor:
        """The share of each bin that the number fills."""
        if self._is_far:
            numerics = numerics - self.origin
        x = numerics.index_select(1, self.column)
        shift = self.near_shift if self._is_far else self.shift
        return torch.addcmul(shift, self.scale, x).clamp(self.low, self.high)


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
        self.register_buffer("value", float32(values))
        self.num_outputs = self.bins.num_outputs + len(values)
        self.columns = self.bins.columns + columns

    def forward(self, numerics: Tensor) -> Tensor:
        """The shares of the bins, then a one at each frequent value."""
        equal = numerics.index_select(1, self.column) == self.value
        return torch.cat([self.bins(numerics), equal.to(numerics.dtype)], dim=1)


def forbid_sums(module: nn.Module) -> None:
    """Have all `Inputs` of a module give tensors: what torch.compile and models of others take."""
    for part in module.modules():
        if isinstance(part, Inputs):
            part.sparse = False


def prepare_for_vmap(module: nn.Module) -> None:
    """Have all `Inputs` of a module decide nothing by what is in the rows, which vmap cannot do."""
    forbid_sums(module)
    for part in module.modules():
        if isinstance(part, Inputs):
            part.looks_at_rows = False


class Inputs(nn.Module):
    """Categorical and numeric inputs side by side.

    An unseen level, or a number that is missing (NaN), gives zeros. A number that is infinite gives NaN. One
    that is so large that its inputs would overflow counts as the largest that does not.

    Args:
        schema: the data set's.
        categorical: `OneHot`, or `LevelEmbedding` with its size.
        numeric: `Standardize`, `PiecewiseLinear` or `PiecewiseLinearAndValues`.
        dropout: share of columns that a row loses in training: all inputs that such a column gives are 0.

    Raises:
        UserError: a dropout outside [0, 1); rows of another shape; on a CPU, outside of vmap and
            torch.compile, a code that is neither of its column nor the unseen one.

    An encoder's `columns` gives, for each output, the number of the column it is computed from. Inputs are
    computed in float32 whatever the type of the module is, for raw numbers do not fit a half, and cast to
    that type.

    On a CPU many rows are left sparse, for the first layer to take the faster way: see `sparse`.

    Shape:
        codes: [B, C], integers; numerics: [B, M]; or what `encode_once` made of them. output x: [B, I], I =
        `num_outputs`, or as `SparseInputs`.
    """

    column: Tensor
    number: Tensor
    least: Tensor
    most: Tensor

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
        self.num_columns = len(schema.categorical) + len(schema.numeric)
        levels, numbers = torch.tensor(self.categorical.columns), torch.tensor(self.numeric.columns)
        column = torch.cat([levels, len(schema.categorical) + numbers]).long()
        self.register_buffer("column", column, persistent=False)
        self.register_buffer("number", numbers.long(), persistent=False)
        bounds = [_bounds(column) for column in schema.numeric]
        self.register_buffer("least", float32([least for least, _ in bounds]), persistent=False)
        self.register_buffer("most", float32([most for _, most in bounds]), persistent=False)
        ends = torch.tensor([0, *(len(column.levels) for column in schema.categorical)]).cumsum(0)
        # Not buffers, for each of a step's look-ups would cost: rows are looked at on a CPU alone.
        self._codes, self._usual = (ends[:-1], ends[1:] - 1), (self.least, self.most)
        self.num_outputs: int = sum(encoder.num_outputs for encoder in encoders)
        self.dtype = torch.get_default_dtype()
        self._shapes = (len(schema.categorical),), (len(schema.numeric),)  # of a row's codes and numerics
        self.looks_at_rows = True
        self.usual = False  # of rows that it does not look at
        self._schema = schema
        # Not those that a subclass inherits: its outputs are others.
        self._kinds: list[Any] = [vars(type(encoder)).get("states") for encoder in encoders]
        has_levels = len(schema.categorical) > 0 and all(column.levels for column in schema.categorical)
        self.sparse = all(self._kinds) and has_levels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast parameters; buffers are only moved, for a half would round or lose the scales."""
        buffers = [(part, name, b) for part in self.modules() for name, b in part._buffers.items()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part, name, buffer in buffers:
            moved = part._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                part._buffers[name] = buffer.to(moved.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.column.device)).dtype
        return self

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
        return self._states.encode(rows) if self.is_usual(rows.codes, rows.numerics) else rows

    def dense(self, codes: Tensor, numerics: Tensor, usual: bool = False) -> Tensor:
        """All inputs as one tensor, [B, I]; of `usual` numbers nothing but their inputs is computed."""
        numbers = self.numeric(numerics) if usual else self._any_numbers(numerics)
        x = torch.cat([self.categorical(codes), numbers], dim=1)
        return x if x.dtype == self.dtype else x.to(self.dtype)

    def _any_numbers(self, numerics: Tensor) -> Tensor:
        """Inputs of numbers that may be missing, infinite or too large."""
        x: Tensor = self.numeric(numerics.clamp(self.least, self.most))
        given = numerics.index_select(1, self.number)
        return x.masked_fill(given.isinf(), torch.nan).masked_fill(given.isnan(), 0.0)

    def _takes_sums(self, num_rows: int, numerics: Tensor) -> bool:
        whole = self.dtype in (torch.float32, torch.float64)  # halves round inputs, as sums would not
        possible = whole and numerics.device.type == "cpu" and not numerics.requires_grad
        return self.sparse and possible and num_rows >= SPARSE_ROWS

    def _rows(self, codes: Tensor, numerics: Tensor) -> tuple[Tensor, Tensor]:
        """Codes as int64 and numerics as float32, both with as many columns as the schema has."""
        shapes = codes.shape[1:], numerics.shape[1:]
        if shapes != self._shapes or codes.dtype not in INTEGERS or codes.shape[0] != numerics.shape[0]:
            (num_codes,), (num_numbers,) = self._shapes
            raise UserError(
                f"codes [B, {num_codes}], integers, and numerics [B, {num_numbers}]: must be rows of these"
                f" shapes, are {list(codes.shape)} of {codes.dtype} and {list(numerics.shape)}"
            )
        return codes.long(), numerics.float()

    def is_usual(self, codes: Tensor, numerics: Tensor) -> bool:
        """Whether no number of rows needs care; False where that cannot be asked. Wrong codes are refused."""
        return self._look_at(*self._rows(codes, numerics))

    def _look_at(self, codes: Tensor, numerics: Tensor) -> bool:
        if torch.compiler.is_compiling() or numerics.device.type != "cpu":
            return False
        if not torch.equal(torch.clamp(codes, *self._codes), codes):
            check_codes(codes, self._schema)
        return torch.equal(torch.clamp(numerics, *self._usual), numerics)

    def forward(self, codes: Tensor | Entries, numerics: Tensor) -> Tensor | SparseInputs:
        """Encode both and join them."""
        if isinstance(codes, Entries):
            return self._states.sparse_inputs(codes, numerics)
        codes, numerics = self._rows(codes, numerics)
        usual = self._look_at(codes, numerics) if self.looks_at_rows else self.usual
        drops = self.training and self.dropout.p > 0
        if usual and not drops and self._takes_sums(codes.shape[0], numerics):
            return self._states.sparse_inputs(*self._states.of(codes, numerics))
        x = self.dense(codes, numerics, usual)
        if drops:
            kept = self.dropout(x.new_ones(x.shape[0], self.num_columns))  # [B, C + M]
            x = x * kept.index_select(1, self.column)
        return x


def _bounds(column: Numeric) -> tuple[float, float]:
    """The smallest and the largest number whose inputs are no larger than LARGEST_INPUT."""
    narrowest = min(column.std, min(b - a for a, b in pairwise(column.bins)))
    reach = LARGEST_INPUT * narrowest
    least = max(min(column.mean, column.bins[0]) - reach, -LARGEST)
    most = min(max(column.mean, column.bins[-1]) + reach, LARGEST)
    return min(least, LARGEST), max(most, -LARGEST)
