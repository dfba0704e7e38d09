"""A network that returns predictions instead of logits, for programs without mmoe.

B batch, C categorical columns, M numeric columns, T tasks, E experts.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from mmoe.data.schema import Schema


class ExportedNetwork(nn.Module):
    """A network that returns probabilities for binary tasks, and values in the label's unit for regressions.

    Shape:
        levels: [B, C], int64, numbered as in `Batch`; numbers: [B, M], float32, as in the raw rows.
        output: predictions [B, T] and gate weights [B, T, E]; E is 0 for a model without gates.
    """

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.network = network
        self.is_binary = nn.Buffer(torch.tensor([task.is_binary for task in schema.tasks]))
        self.mean = nn.Buffer(torch.tensor([task.mean for task in schema.tasks]))
        self.std = nn.Buffer(torch.tensor([task.std for task in schema.tasks]))
        self._is_scaled = any(task.is_scaled for task in schema.tasks)

    def forward(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        logits, gates = self.network(levels, numbers)
        values = logits * self.std + self.mean if self._is_scaled else logits
        return torch.where(self.is_binary, logits.sigmoid(), values), gates


def random_inputs(schema: Schema, count: int) -> tuple[Tensor, Tensor]:
    """Levels and numbers of random rows, with unseen levels and numbers outside the bins."""
    random = torch.Generator().manual_seed(0)
    levels = torch.empty(count, len(schema.categorical), dtype=torch.int64)
    for i, (first, end) in enumerate(pairwise(schema.level_offsets)):
        drawn = torch.randint(first, end + 1, (count,), generator=random)
        levels[:, i] = torch.where(drawn == end, schema.num_levels, drawn)
    low = torch.tensor([column.bins[0] for column in schema.numeric])
    high = torch.tensor([column.bins[-1] for column in schema.numeric])
    share = 1.2 * torch.rand(count, len(schema.numeric), generator=random) - 0.1
    return levels, low + share * (high - low)
