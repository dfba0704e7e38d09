"""What LightGBM is trained on: the encoded rows of a data set as numbers.

N rows, M numeric columns, C categorical columns.
"""

import numpy as np
import torch

from mmoe.data.batch import Batch
from mmoe.data.schema import Schema
from mmoe.data.splits import Dataset


def known_rows(rows: Batch, task: int) -> np.ndarray:
    """Whether the label of a task is known [N]."""
    return np.ones(len(rows.labels), bool) if rows.known is None else rows.known[:, task].numpy()


def level_inputs(schema: Schema) -> list[int]:
    """The positions of the inputs that hold levels, for LightGBM's `categorical_feature`."""
    positions, end = [], len(schema.numeric)
    for column in schema.categorical:
        positions += [] if column.is_multi else [end]
        end += column.num_codes if column.is_multi else 1
    return positions


def lightgbm_inputs(data: Dataset, task: int, split: str, prior: float | None = 0.0) -> np.ndarray:
    """Numbers [N, M], then each level as its rank by the mean training label of the task [N, C].

    On validation rows of the census data this is better than LightGBM's own handling of categories, which
    overfits. Only training rows whose label is known count, by their weights. `prior` adds the weight of so
    many rows with the mean label to each level, so that a rare level does not tell the labels of its rows.
    With the prior None, levels are codes for `categorical_feature`, and an unseen level is -1. A column with
    several levels in a row becomes one input for each of its levels.
    """
    train, rows = data.splits["train"], data.splits[split]
    known = torch.from_numpy(known_rows(train, task))
    labels = train.labels[known, task].double()
    weights = torch.ones_like(labels) if train.weights is None else train.weights[known, task].double()
    mean, size = float((labels * weights).sum() / weights.sum()), data.schema.num_levels + 1
    positions = np.array(data.schema.level_positions)
    inputs = [rows.numbers]
    for i, column in enumerate(data.schema.categorical):
        own = torch.from_numpy(np.flatnonzero(positions == i))
        codes = rows.levels[:, own].long()
        if column.is_multi:
            first = data.schema.level_offsets[i]
            levels = torch.arange(first, first + column.num_codes)
            inputs.append((codes[:, :, None] == levels).any(1).float())
            continue
        if prior is None:
            is_seen = codes < data.schema.num_levels
            inputs.append(torch.where(is_seen, codes - data.schema.level_offsets[i], -1).float())
            continue
        seen = train.levels[known][:, own[0]].long()
        count = torch.bincount(seen, weights, size) + prior  # the last code is an unseen level
        sums = torch.bincount(seen, weights * labels, size) + prior * mean
        rank = (sums / count).nan_to_num(-torch.inf).argsort(stable=True).argsort().float()
        inputs.append(rank[codes])
    return torch.cat(inputs, dim=1).numpy()
