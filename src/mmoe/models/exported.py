"""A network that returns predictions instead of logits, for programs without mmoe.

B batch, P level slots of a row, M numeric columns, T tasks, L predictions of all tasks, E experts.
"""

import torch
from torch import Tensor, nn

from mmoe.data.batch import level_bounds
from mmoe.data.schema import Schema
from mmoe.tasks import logit_columns


class ExportedNetwork(nn.Module):
    """A network that returns the predictions of its tasks, such as probabilities, instead of logits.

    Shape:
        levels: [B, P], int64, numbered as in `Batch`; a multi-valued column has `max_values` positions.
        numbers: [B, M], float32, NaN where missing: the numbers of the raw rows, less the column's origin,
            which is subtracted in float64. Dates are days since 1970.
        output: predictions [B, L] and gate weights [B, T, E]; E is 0 for a model without gates. A task of
            several classes has a probability for each; other tasks have one prediction.
    """

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.network = network
        self.tasks = schema.tasks
        self.columns = logit_columns(schema.tasks)

    def forward(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        logits, gates = self.network(levels, numbers)
        columns = zip(self.tasks, self.columns, strict=True)
        return torch.cat([task.activation(logits[:, own]) for task, own in columns], dim=1), gates


def random_inputs(schema: Schema, count: int) -> tuple[Tensor, Tensor]:
    """Levels and numbers of random rows: some levels are unseen, some numbers missing or outside the bins.

    As in encoded rows, a multi-valued column has no level twice.
    """
    random = torch.Generator().manual_seed(0)
    levels = torch.empty(count, len(schema.column_of_position), dtype=torch.int64)
    for i, (first, last) in enumerate(zip(*level_bounds(schema), strict=True)):
        drawn = torch.randint(int(first), int(last) + 2, (count,), generator=random)
        others = [j for j in range(i) if schema.column_of_position[j] == schema.column_of_position[i]]
        is_repeated = (levels[:, others] == drawn[:, None]).any(1)
        levels[:, i] = torch.where((drawn > last) | is_repeated, schema.num_codes, drawn)
    low = torch.tensor([column.bins[0] for column in schema.numeric])
    high = torch.tensor([column.bins[-1] for column in schema.numeric])
    share = 1.2 * torch.rand(count, len(schema.numeric), generator=random) - 0.1
    numbers = low + share * (high - low)
    return levels, numbers.masked_fill(share > 1.05, torch.nan)
