"""Encode levels or numbers as inputs of the network. `Inputs` joins two of these encoders.

An encoder has `num_outputs`, and `columns`: the column that each output is computed from.

B batch, C categorical columns, M numeric columns, L levels of all columns.
"""

import math

import torch
from torch import Tensor, nn

from mmoe.data.schema import Schema
from mmoe.errors import check_integers
from mmoe.models.sparse_inputs import float32

MAX_EDGE_PER_WIDTH = 2.0**14  # if an edge exceeds so many bin widths, rounding changes shares by over 0.001


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
        self.column = nn.Buffer(torch.tensor(self.columns, dtype=torch.long))
        self.scale, self.shift = nn.Buffer(float32(scale)), nn.Buffer(float32(shift))
        self.low, self.high = nn.Buffer(float32(low)), nn.Buffer(float32(high))
        self.origin = nn.Buffer(float32(origins))

    def forward(self, numbers: Tensor) -> Tensor:
        x = (numbers - self.origin).index_select(1, self.column)
        return torch.addcmul(self.shift, self.scale, x).clamp(self.low, self.high)


class PiecewiseLinearAndValues(nn.Module):
    """`PiecewiseLinear` bins, then one input for each number that is frequent in the training file.

    A frequent number may have a meaning of its own, for example an amount fixed by law.

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
