"""The training, validation and test rows of a data set.

N rows, P level slots of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmoe.data.batch import Batch, take
from mmoe.data.schema import Schema
from mmoe.data.shards import ShardedRows

SPLITS = ("train", "val", "test")
CONFIG_KEYS = {"train": "train", "val": "validation", "test": "test"}  # of the splits in a configuration


@dataclass(frozen=True)
class Dataset:
    """Encoded rows by split, with the position (from 0) of each in its source.

    Rows in shards hold their positions themselves.
    """

    schema: Schema
    splits: Mapping[str, Batch | ShardedRows]
    positions: Mapping[str, Tensor]


def split_in_half(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted validation and test positions: a random 1:1 split of the test file (paper, section 6.3)."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[: num_rows // 2].sort().values, order[num_rows // 2 :].sort().values


def assemble(schema: Schema, train: Batch, held_out: Batch, split_seed: int) -> Dataset:
    """Make a data set: halve the held-out rows into validation and test rows."""
    val, test = split_in_half(len(held_out.labels), split_seed)
    splits = {"train": train, "val": take(held_out, val), "test": take(held_out, test)}
    positions = {"train": torch.arange(len(train.labels)), "val": val, "test": test}
    num_rows = {name: len(where) for name, where in positions.items()}
    return Dataset(replace(with_modes(schema, train.levels), num_rows=num_rows), splits, positions)


def with_modes(schema: Schema, levels: Tensor) -> Schema:
    """The schema with each column's most frequent code in the training rows `levels` [N, P]."""
    counts = torch.bincount(levels.flatten(), minlength=schema.num_codes)[: schema.num_codes]
    by_column = torch.split(counts, [column.num_codes for column in schema.categorical])
    categorical = tuple(
        replace(column, mode=int(column_counts.argmax()) if column.num_codes else 0)
        for column, column_counts in zip(schema.categorical, by_column, strict=True)
    )
    return replace(schema, categorical=categorical)
