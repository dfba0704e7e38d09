"""The training, validation and test rows of a data set.

N rows, P level slots of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmoe.data.batch import Batch
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


def with_modes(schema: Schema, levels: Tensor) -> Schema:
    """The schema with each column's most frequent code in the training rows `levels` [N, P]."""
    counts = torch.bincount(levels.flatten(), minlength=schema.num_codes)[: schema.num_codes]
    by_column = torch.split(counts, [column.num_codes for column in schema.categorical])
    categorical = tuple(
        replace(column, mode=int(column_counts.argmax()) if column.num_codes else 0)
        for column, column_counts in zip(schema.categorical, by_column, strict=True)
    )
    return replace(schema, categorical=categorical)
