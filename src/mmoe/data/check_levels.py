"""Check that the levels of encoded rows match a schema.

N rows, C categorical columns.
"""

import torch
from torch import Tensor

from mmoe.data.schema import Schema
from mmoe.errors import UserError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)


def check_levels(levels: Tensor, schema: Schema) -> None:
    """Check that each of the levels [..., N, C] is a code of its column, or the unseen code.

    Raises:
        UserError: names the column and its first invalid code.
    """
    sizes = torch.tensor([len(column.levels) for column in schema.categorical], dtype=torch.int64)
    ends = sizes.cumsum(0)
    starts, unseen = ends - sizes, schema.num_levels
    # Comparing in the type of the levels is several times faster.
    dtype = levels.dtype if unseen <= torch.iinfo(levels.dtype).max else torch.int64
    # The unseen code is a tensor, because torch wraps a plain number around to the range of the levels' type.
    bounds = (starts, ends - 1, torch.full_like(ends, unseen))
    low, high, other = (bound.to(levels.device, dtype) for bound in bounds)
    valid = (levels >= low) & (levels <= high) | (levels == other)
    if not valid.all():
        where = (~valid).nonzero()[0].tolist()
        row, column = where[-2:]
        rule = f"must be a code from {starts[column]} to {ends[column] - 1}, or {unseen} for an unseen level"
        name, code = schema.categorical[column].name, levels[tuple(where)].item()
        raise UserError(f"column {name}: {rule}; row {row} is {code}")
