"""A network that returns predictions instead of logits, for programs without mmoe.

B batch, C categorical columns, M numeric columns, T tasks, E experts.
"""

import torch
from torch import Tensor, nn

from mmoe.data.schema import Schema


class Served(nn.Module):
    """A network that returns probabilities for binary tasks, and values in the label's unit for regressions.

    Shape:
        levels: [B, C], int64, numbered as in `Batch`; numbers: [B, M], float32, as in the raw rows.
        output: predictions [B, T] and gate weights [B, T, E]; E is 0 for a model without gates.
    """

    is_binary: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("is_binary", torch.tensor([task.is_binary for task in schema.tasks]))
        self.register_buffer("mean", torch.tensor([task.mean for task in schema.tasks]))
        self.register_buffer("std", torch.tensor([task.std for task in schema.tasks]))
        self._is_scaled = any(task.is_scaled for task in schema.tasks)

    def forward(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        logits, gates = self.network(levels, numbers)
        values = logits * self.std + self.mean if self._is_scaled else logits
        return torch.where(self.is_binary, logits.sigmoid(), values), gates


def random_rows(schema: Schema, count: int) -> tuple[Tensor, Tensor]:
    """Levels and numbers of random rows, with unseen levels and numbers outside the bins."""
    random = torch.Generator().manual_seed(0)
    levels, offset = torch.empty(count, len(schema.categorical), dtype=torch.int64), 0
    for i, column in enumerate(schema.categorical):
        drawn = torch.randint(len(column.levels) + 1, (count,), generator=random) + offset
        offset += len(column.levels)
        levels[:, i] = torch.where(drawn == offset, schema.num_levels, drawn)
    low = torch.tensor([column.bins[0] for column in schema.numeric])
    high = torch.tensor([column.bins[-1] for column in schema.numeric])
    share = 1.2 * torch.rand(count, len(schema.numeric), generator=random) - 0.1
    return levels, low + share * (high - low)
