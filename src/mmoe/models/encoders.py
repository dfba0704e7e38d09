"""Encoders that a configuration chooses for all levels or all numbers. `Inputs` joins the encoders.

An encoder has `num_outputs`, and `columns`: the column that each output is computed from.

B batch, P level slots of a row, C encoded categorical columns, M numeric columns, L codes of one-hot columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_finite, check_integers
from mmoe.data.schema import Schema

MAX_INPUT = 1e30  # products of larger inputs may overflow
MAX_EDGE_PER_WIDTH = 2.0**14  # if an edge exceeds this many bin widths, rounding changes shares by over 0.001


class OneHot(nn.Module):
    """One input for each code of the one-hot columns; an unseen level is all zeros.

    Args:
        schema: the schema of the data set.
        scale: the value of an input where the row has its level; elsewhere it is 0. With Adam, a smaller
            scale makes the effect of a level's weight change more slowly.

    Raises:
        ArgumentError: `scale` is not above 0.

    Shape:
        levels: [B, P]; output: [B, L].
    """

    def __init__(self, schema: Schema, scale: float = 1.0) -> None:
        super().__init__()
        (self.scale,) = check_finite(1e-6, scale=scale)
        columns = schema.categorical[: schema.num_one_hot]
        self.num_outputs = sum(column.num_codes for column in columns)
        self.columns = [i for i, column in enumerate(columns) for _ in range(column.num_codes)]
        self.num_positions = sum(column.max_values for column in columns)
        self.encodes_all_columns = len(columns) == len(schema.categorical)

    def forward(self, levels: Tensor) -> Tensor:
        if not self.num_outputs:
            return levels[:, :0].float()  # [B, 0]; vmap has no batching rule for what follows
        codes = levels.long()
        if not self.encodes_all_columns:
            codes = codes[:, : self.num_positions].clamp(max=self.num_outputs)
        # Unseen levels have the code L: they set an additional input, which is then cut off.
        x = levels.new_zeros(levels.shape[0], self.num_outputs + 1, dtype=torch.float32)
        return x.scatter_(1, codes, self.scale)[:, :-1]


class LevelEmbedding(nn.Module):
    """A learned vector of one size for each code; an unseen level is the zero vector.

    It encodes the columns that are one-hot in the schema. A multi-valued column is the mean of its vectors.

    Shape:
        levels: [B, P]; output: [B, C * size], the vectors of a row side by side.

    Raises:
        ArgumentError: `size` is below 1.
    """

    def __init__(self, schema: Schema, size: int) -> None:
        super().__init__()
        (size,) = check_integers(1, size=size)
        columns = schema.categorical[: schema.num_one_hot]
        num_codes = sum(column.num_codes for column in columns)
        self.num_outputs = len(columns) * size
        self.columns = [i for i in range(len(columns)) for _ in range(size)]
        self.sizes = [column.max_values for column in columns]
        self.vectors = nn.Embedding(num_codes + 1, size, padding_idx=num_codes)
        self.unseen = num_codes

    def forward(self, levels: Tensor) -> Tensor:
        codes = levels[:, : sum(self.sizes)].long().clamp(max=self.unseen)
        return means(self.vectors(codes), codes, self.unseen, self.sizes).flatten(1)  # [B, C * size]


def means(vectors: Tensor, codes: Tensor, unseen: int, sizes: list[int]) -> Tensor:
    """The mean vector of each column, [B, C, size], which is zero if the column has only unseen levels.

    Args:
        vectors: the vectors of the positions, [B, P, size]; those of unseen levels are zero.
        codes: the codes of the positions, [B, P].
        unseen: the code of an unseen level.
        sizes: the number of positions of each column, [C].
    """
    if len(sizes) == codes.shape[1]:
        return vectors
    parts = zip(torch.split(vectors, sizes, 1), torch.split(codes, sizes, 1), strict=True)
    return torch.stack([v.sum(1) / c.ne(unseen).sum(1, keepdim=True).clamp(min=1) for v, c in parts], 1)


class LinearScaling(nn.Module):
    """(number - offset) / scale, with an offset and a scale for each column.

    Shape:
        numbers: [B, M]; output: [B, M].
    """

    def __init__(self, offsets: Sequence[float], scales: Sequence[float]) -> None:
        super().__init__()
        self.num_outputs = len(offsets)
        self.columns = list(range(self.num_outputs))
        self.offset = nn.Buffer(float32(offsets), persistent=False)
        self.scale = nn.Buffer(float32(scales), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        return (numbers - self.offset) / self.scale


class Standardize(LinearScaling):
    """z-scores, with the mean and the standard deviation of the training rows."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(
            [column.mean for column in schema.numeric], [column.std for column in schema.numeric]
        )


class MinMax(LinearScaling):
    """Min-max scaling: the training rows have numbers from 0 to 1."""

    def __init__(self, schema: Schema) -> None:
        bins = [column.bins for column in schema.numeric]
        super().__init__([edges[0] for edges in bins], [edges[-1] - edges[0] for edges in bins])


class Unscaled(nn.Module):
    """The numbers as `Inputs` gives them, limited to ±MAX_INPUT.

    `Inputs` limits numbers by the mean and the bins of their column, and its limit may exceed MAX_INPUT.

    Shape:
        numbers: [B, M]; output: [B, M].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.num_outputs = len(schema.numeric)
        self.columns = list(range(self.num_outputs))

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.clamp(-MAX_INPUT, MAX_INPUT)


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding by quantile bins (Gorishniy et al., NeurIPS 2022, equation 1).

    Each bin below the number gives 1. The number's own bin gives the share of the bin that lies below the
    number. Outside the outer edges, the outer bins continue linearly. This equals
    `rtdl_num_embeddings.PiecewiseLinearEncoding`, which indexes with a boolean mask: that synchronises with
    the GPU, and vmap cannot do it.

    Shape:
        numbers: [B, M]; output: [B, number of bins of all columns].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        scale, shift, low, high, origins = (list[float]() for _ in range(5))
        self.columns: list[int] = []
        for i, numeric in enumerate(schema.numeric):
            edges = float32(numeric.bins)
            width = edges.diff()
            # If edges are large and bins narrow, scale * x + shift cancels, which magnifies rounding errors.
            # Then x and the edges are counted from edges[0].
            is_exact = (edges[:-1] / width).abs().max() <= MAX_EDGE_PER_WIDTH
            origin = torch.zeros(()) if is_exact else edges[0]
            scale += (1 / width).tolist()
            shift += ((origin - edges[:-1]) / width).tolist()
            low += [-math.inf] + [0.0] * (len(width) - 1)
            high += [1.0] * (len(width) - 1) + [math.inf]
            origins.append(float(origin))
            self.columns += [i] * len(width)
        self.num_outputs = len(self.columns)
        self.column = nn.Buffer(torch.tensor(self.columns, dtype=torch.long), persistent=False)
        self.scale = nn.Buffer(float32(scale), persistent=False)
        self.shift = nn.Buffer(float32(shift), persistent=False)
        self.low = nn.Buffer(float32(low), persistent=False)
        self.high = nn.Buffer(float32(high), persistent=False)
        self.origin = nn.Buffer(float32(origins), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        x = (numbers - self.origin).index_select(1, self.column)
        return torch.addcmul(self.shift, self.scale, x).clamp(self.low, self.high)


class PiecewiseLinearAndValues(nn.Module):
    """`PiecewiseLinear` bins, then one input for each number that is frequent in the training rows.

    A frequent number may have a meaning of its own, for example an amount fixed by law.

    Shape:
        numbers: [B, M]; output: [B, number of bins and frequent values of all columns].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.bins = PiecewiseLinear(schema)
        columns = [i for i, numeric in enumerate(schema.numeric) for _ in numeric.frequent_values]
        values = [value for numeric in schema.numeric for value in numeric.frequent_values]
        self.column = nn.Buffer(torch.tensor(columns, dtype=torch.long), persistent=False)
        self.value = nn.Buffer(float32(values), persistent=False)
        self.num_outputs = self.bins.num_outputs + len(values)
        self.columns = self.bins.columns + columns

    def forward(self, numbers: Tensor) -> Tensor:
        equal = numbers.index_select(1, self.column) == self.value
        return torch.cat([self.bins(numbers), equal.to(numbers.dtype)], dim=1)


def float32(values: Sequence[float]) -> Tensor:
    """The values as a float32 tensor, whatever the default type of torch is."""
    return torch.tensor(values, dtype=torch.float32)
