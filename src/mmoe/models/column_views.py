"""Which columns each unit of the experts' first layer sees, and how each expert scales them.

I inputs, E experts, F width of an expert's first layer, G groups of inputs.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_finite, is_number
from mmoe.errors import ArgumentError


class ColumnViews(nn.Module):
    """Hide columns from the units of experts, and scale the columns of each expert.

    Each unit sees a random share of the columns, drawn once. Units then differ more, as the trees of a random
    forest do. The scales are learned, one for each expert and column, and start at 1. A large `scale_rate`
    lets an expert choose its columns sooner than it can change single weights, as the scaling layer of
    RealMLP does (Holzmüller et al., NeurIPS 2024).

    Args:
        input_groups: the number of each input's column. Inputs with the same negative number are a group
            that every unit sees.
        num_experts: E.
        share: the share of the columns that a unit sees; 1: all.
        scale_rate: how much faster scales change than weights; 0: no scales.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        weight: [I, E*F]; output: the weight [I, E*F] that is applied to the inputs. It is 0 for hidden
        columns, and includes the scales.
    """

    def __init__(
        self, input_groups: Sequence[int], num_experts: int, share: float = 1.0, scale_rate: float = 0.0
    ) -> None:
        super().__init__()
        (self.scale_rate,) = check_finite(0, column_scale_rate=scale_rate)
        (self.share,) = check_finite(1e-6, column_share=share)
        if self.share > 1:
            raise ArgumentError(f"column_share={share}: must be at most 1")
        if not all(is_number(group, Integral) for group in input_groups):
            raise ArgumentError("input_groups: must be a list of integers")
        numbers, group = torch.unique(torch.tensor(input_groups), return_inverse=True)
        self.group = nn.Buffer(group, persistent=False)  # [I]
        self.is_column = numbers >= 0  # [G]
        self.is_seen: Tensor | None
        self.register_buffer("is_seen", None)  # [I, E*F]
        self.scales: nn.Parameter | None = None
        if self.scale_rate:
            self.scales = nn.Parameter(torch.zeros(len(numbers), num_experts))

    def draw_and_rescale(self, weight: Tensor) -> None:
        """Draw the columns that each unit sees, at least one, and rescale a new layer's weight in place.

        The weight is divided by the square root of the share, which keeps the variance that the columns add
        to the outputs.
        """
        if self.share == 1:
            return
        is_seen = torch.rand(len(self.is_column), weight.shape[1]) < self.share  # [G, E*F]
        if columns := self.is_column.nonzero()[:, 0].tolist():
            for unit in (~is_seen[columns].any(0)).nonzero()[:, 0].tolist():
                is_seen[columns[unit % len(columns)], unit] = True
        is_seen[~self.is_column] = True
        self.is_seen = is_seen[self.group]
        weight.div_(math.sqrt(self.share))

    def forward(self, weight: Tensor) -> Tensor:
        if self.is_seen is not None:
            weight = torch.where(self.is_seen, weight, 0.0)
        if self.scales is None:
            return weight
        scales = (1 + self.scale_rate * self.scales).index_select(0, self.group)  # [I, E]
        by_expert = torch.unflatten(weight, 1, (scales.shape[1], -1))  # [I, E, F]
        return (by_expert * scales[:, :, None]).flatten(1)  # [I, E*F]
