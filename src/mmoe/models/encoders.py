"""Encode levels or numbers as inputs of the network. `Inputs` joins these encoders.

An encoder has `num_outputs`, and `columns`: the column that each output is computed from.

B batch, P positions of levels, C categorical columns, M numeric columns, L codes of one-hot columns, K
positions of one column.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.data.schema import NUMBER_ENCODINGS, Schema
from mmoe.errors import ArgumentError, check_finite, check_integers
from mmoe.models.sparse_inputs import float32

MIN_SPARSE_CODES = 4096  # in smaller tables a dense gradient is faster
MAX_EDGE_PER_WIDTH = 2.0**14  # if an edge exceeds so many bin widths, rounding changes shares by over 0.001


class OneHot(nn.Module):
    """One input for each code of the one-hot columns; an unseen level is all zeros.

    Args:
        schema: the schema of the data set.
        scale: the value of the input of a row's level. With Adam, a smaller scale makes the effect of a
            level's weight change more slowly.

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
        self.is_whole = len(columns) == len(schema.categorical)

    def forward(self, levels: Tensor) -> Tensor:
        if not self.num_outputs:
            return levels[:, :0].float()  # [B, 0]; vmap has no batching rule for what follows
        codes = levels.long()
        if not self.is_whole:
            codes = codes[:, : self.num_positions].clamp(max=self.num_outputs)
        # Unseen levels have the code L: they set an additional input, which is then cut off.
        x = levels.new_zeros(levels.shape[0], self.num_outputs + 1, dtype=torch.float32)
        return x.scatter_(1, codes, self.scale)[:, :-1]


class LevelEmbedding(nn.Module):
    """A learned vector of one size for each code; an unseen level is the zero vector.

    It encodes the columns for which the schema has no size. A multi-valued column is the mean of its vectors.

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


class ColumnEmbeddings(nn.Module):
    """Learned vectors for the codes of the columns that have a `size` in the schema, a table for each column.

    An unseen level is the zero vector, and a multi-valued column is the mean of its vectors. The gradient of
    a large table is sparse: it has only the rows of the batch. A vector starts with a length of about 1, as
    a one-hot level has.

    Shape:
        levels: [B, P]; output: [B, sum of the sizes].
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        first = schema.num_one_hot
        columns = [column for column in schema.categorical if column.size]
        self.num_outputs = sum(column.size for column in columns)
        self.columns = [first + i for i, column in enumerate(columns) for _ in range(column.size)]
        self.sizes = [column.max_values for column in columns]
        start = sum(column.max_values for column in schema.categorical[:first])
        self.positions = slice(start, start + sum(self.sizes))
        self.offsets = schema.level_offsets[first : first + len(columns)]
        self.tables = nn.ModuleList(_table(column.num_codes, column.size) for column in columns)

    def forward(self, levels: Tensor) -> Tensor:
        if not self.num_outputs:
            return levels[:, :0].float()  # [B, 0]
        vectors = []
        parts = torch.split(levels[:, self.positions].long(), self.sizes, 1)
        tables: Iterable[Any] = self.tables
        for table, offset, part in zip(tables, self.offsets, parts, strict=True):
            unseen = table.num_embeddings - 1
            codes = (part - offset).clamp(max=unseen)  # [B, K]
            vectors.append(means(table(codes), codes, unseen, [codes.shape[1]]).squeeze(1))  # [B, size]
        return torch.cat(vectors, 1)


class TargetStatistics(nn.Module):
    """The statistics of a row's level that the schema has for a column; see `data.target_statistics`.

    An unseen level gives zeros, the mean over the training rows. A multi-valued column gives the mean of its
    levels.

    Shape:
        levels: [B, P]; output: [B, number of statistics of all columns].

    Raises:
        ArgumentError: a column needs statistics, and the schema has none.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        chosen = [i for i, column in enumerate(schema.categorical) if column.encoding]
        columns = [schema.categorical[i] for i in chosen]
        for column in columns:
            if column.num_codes and not column.statistics:
                raise ArgumentError(f"categorical.{column.name}.statistics: must be fitted to training rows")
        width = max((len(column.statistics[0]) for column in columns if column.statistics), default=0)
        self.num_outputs = width * len(columns)
        self.columns = [i for i in chosen for _ in range(width)]
        self.sizes = [column.max_values for column in columns]
        positions = [p for p, i in enumerate(schema.level_positions) if i in set(chosen)]
        table = torch.zeros(schema.num_levels + 1, width)  # the last row is an unseen level
        for i, column in zip(chosen, columns, strict=True):
            table[slice(*schema.level_offsets[i : i + 2])] = torch.tensor(column.statistics).view(-1, width)
        # They follow from the schema, so a checkpoint need not hold them.
        self.positions = nn.Buffer(torch.tensor(positions, dtype=torch.long), persistent=False)
        self.table = nn.Buffer(table, persistent=False)

    def forward(self, levels: Tensor) -> Tensor:
        codes = levels.index_select(1, self.positions).long()  # [B, positions]
        return means(self.table[codes], codes, len(self.table) - 1, self.sizes).flatten(1)  # [B, C * width]


def _table(num_codes: int, size: int) -> nn.Embedding:
    """A table of vectors, with a last row of zeros for unseen levels."""
    table = nn.Embedding(num_codes + 1, size, padding_idx=num_codes, sparse=num_codes >= MIN_SPARSE_CODES)
    with torch.no_grad():
        table.weight.normal_(std=size**-0.5)
        table.weight[num_codes] = 0.0
    return table


def means(vectors: Tensor, codes: Tensor, unseen: int, sizes: Sequence[int]) -> Tensor:
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


class NumbersByColumn(nn.Module):
    """Encode each number as the schema says for its column; `default` encodes columns without an encoding.

    The inputs of columns with the same encoding stand side by side.

    Attributes:
        parts: an encoder for each encoding.
        part_columns: the numeric columns of each part.

    Shape:
        numbers: [B, M]; output: [B, number of outputs of all parts].
    """

    def __init__(self, schema: Schema, default: Callable[[Schema], nn.Module]) -> None:
        super().__init__()
        by_encoding: dict[str, list[int]] = {}
        for i, column in enumerate(schema.numeric):
            by_encoding.setdefault(column.encoding, []).append(i)
        self.part_columns = list(by_encoding.values())
        self.parts = nn.ModuleList()
        self.columns: list[int] = []
        for encoding, columns in by_encoding.items():
            encoder = ENCODERS[encoding] if encoding else default
            part: Any = encoder(replace(schema, numeric=tuple(schema.numeric[i] for i in columns)))
            self.parts.append(part)
            self.columns += [columns[i] for i in part.columns]
        self.num_outputs = len(self.columns)
        order = [i for columns in self.part_columns for i in columns]
        self.order = nn.Buffer(torch.tensor(order, dtype=torch.long), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        sizes = [len(columns) for columns in self.part_columns]
        columns = torch.split(numbers.index_select(1, self.order), sizes, 1)
        return torch.cat([part(own) for part, own in zip(self.parts, columns, strict=True)], 1)


ENCODERS = dict(zip(NUMBER_ENCODINGS, (Standardize, PiecewiseLinear, PiecewiseLinearAndValues), strict=True))


def number_encoder(schema: Schema, default: Callable[[Schema], nn.Module]) -> nn.Module:
    """The encoder of all numbers: `default`, unless the schema gives a column an encoding of its own."""
    has_own = any(column.encoding for column in schema.numeric)
    return NumbersByColumn(schema, default) if has_own else default(schema)
