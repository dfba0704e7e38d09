"""Encoders that the schema chooses for single columns; see `encoders` for what an encoder has.

B batch, P level slots of a row, C encoded categorical columns, M numeric columns, K positions of one column.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.data.schema import Schema
from mmoe.errors import ArgumentError
from mmoe.models.encoders import (
    MinMax,
    PiecewiseLinear,
    PiecewiseLinearAndValues,
    Standardize,
    Unscaled,
    means,
)

MIN_SPARSE_CODES = 4096  # in smaller tables a dense gradient is faster


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
        self.offsets = schema.code_offsets[first : first + len(columns)]
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


def _table(num_codes: int, size: int) -> nn.Embedding:
    """A table of vectors, with a last row of zeros for unseen levels."""
    table = nn.Embedding(num_codes + 1, size, padding_idx=num_codes, sparse=num_codes >= MIN_SPARSE_CODES)
    with torch.no_grad():
        table.weight.normal_(std=size**-0.5)
        table.weight[num_codes] = 0.0
    return table


class TargetStatistics(nn.Module):
    """The target statistics that the schema has for the level of a row; see `data.target_statistics`.

    The statistics are standardised, so an unseen level gives zeros, their means over the training rows. A
    multi-valued column gives the mean of its levels.

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
        positions = [p for p, i in enumerate(schema.column_of_position) if i in set(chosen)]
        table = torch.zeros(schema.num_codes + 1, width)  # the last row is an unseen level
        for i, column in zip(chosen, columns, strict=True):
            own = torch.tensor(column.statistics).view(column.num_codes, width)
            table[slice(*schema.code_offsets[i : i + 2])] = own
        # The buffers follow from the schema, so a checkpoint need not hold them.
        self.positions = nn.Buffer(torch.tensor(positions, dtype=torch.long), persistent=False)
        self.table = nn.Buffer(table, persistent=False)

    def forward(self, levels: Tensor) -> Tensor:
        codes = levels.index_select(1, self.positions).long()  # [B, positions]
        return means(self.table[codes], codes, len(self.table) - 1, self.sizes).flatten(1)  # [B, C * width]


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


ENCODERS: dict[str, Callable[[Schema], nn.Module]] = {  # by the names in `NUMBER_ENCODINGS`
    "standard": Standardize,
    "min_max": MinMax,
    "unscaled": Unscaled,
    "piecewise_linear": PiecewiseLinear,
    "piecewise_linear_and_values": PiecewiseLinearAndValues,
}


def number_encoder(schema: Schema, default: Callable[[Schema], nn.Module]) -> nn.Module:
    """The encoder of all numbers: `default`, unless the schema gives a column an encoding of its own."""
    has_own = any(column.encoding for column in schema.numeric)
    return NumbersByColumn(schema, default) if has_own else default(schema)
