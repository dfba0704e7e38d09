"""Train LightGBM on the encoded rows of a data set, one model for each task.

N rows, M numeric columns, C categorical columns, W outputs of a task.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmoe.data.batch import Batch
from mmoe.data.schema import Schema
from mmoe.data.splits import Dataset

# The objective and the validation metric of each kind of task.
OBJECTIVES = {
    "binary": ("binary", "auc"), "multiclass": ("multiclass", "multi_logloss"),
    "regression": ("regression", "l2"), "count": ("poisson", "poisson"),
}  # fmt: skip


def train_lightgbm(
    data: Dataset,
    task: int,
    parameters: Mapping[str, Any],
    seed: int,
    max_rounds: int,
    patience: int,
    prior: float | None = 0.0,
) -> Any:
    """Train LightGBM's model of one task on the rows whose label is known.

    The validation metric chooses the number of boosting rounds: training stops after `patience` rounds
    without an improvement. See `lightgbm_inputs` for `prior`. The model's `predict` takes these inputs,
    and returns [N], or [N, W] for several classes.
    """
    import lightgbm as lgb

    categories = level_inputs(data.schema) if prior is None else []
    sets = {}
    for split in ("train", "val"):
        rows = rows_in_memory(data, split)
        known = known_rows(rows, task)
        weights = None if rows.weights is None else rows.weights[:, task].numpy()[known]
        inputs, labels = lightgbm_inputs(data, task, split, prior)[known], rows.labels[:, task].numpy()[known]
        sets[split] = lgb.Dataset(inputs, labels, weight=weights, categorical_feature=categories)
    objective, metric = OBJECTIVES[data.schema.tasks[task].kind]
    given = {
        "objective": objective, "metric": metric, "num_class": data.schema.tasks[task].num_outputs,
        "bagging_freq": 1, "verbosity": -1, "seed": seed, **parameters,
    }  # fmt: skip
    stopping = lgb.early_stopping(patience, verbose=False)
    return lgb.train(given, sets["train"], max_rounds, [sets["val"]], callbacks=[stopping])


def rows_in_memory(data: Dataset, split: str) -> Batch:
    """The rows of a split, which must not be in shards."""
    rows = data.splits[split]
    assert isinstance(rows, Batch)
    return rows


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
    overfits. Only training rows whose label is known count, by their weights. `prior` adds the weight of this
    many rows with the mean label to each level, so that a rare level does not reveal the labels of its rows.
    With the prior None, levels are codes for `categorical_feature`, and an unseen level is -1. A column with
    several levels in a row becomes one input for each of its levels.
    """
    train, rows = rows_in_memory(data, "train"), rows_in_memory(data, split)
    known = torch.from_numpy(known_rows(train, task))
    labels = train.labels[known, task].double()
    weights = torch.ones_like(labels) if train.weights is None else train.weights[known, task].double()
    mean, size = float((labels * weights).sum() / weights.sum()), data.schema.num_codes + 1
    column_of_position = np.array(data.schema.column_of_position)
    inputs = [rows.numbers]
    for i, column in enumerate(data.schema.categorical):
        own = torch.from_numpy(np.flatnonzero(column_of_position == i))
        codes = rows.levels[:, own].long()
        if column.is_multi:
            first = data.schema.code_offsets[i]
            levels = torch.arange(first, first + column.num_codes)
            inputs.append((codes[:, :, None] == levels).any(1).float())
            continue
        if prior is None:
            is_seen = codes < data.schema.num_codes
            inputs.append(torch.where(is_seen, codes - data.schema.code_offsets[i], -1).float())
            continue
        seen = train.levels[known][:, own[0]].long()
        count = torch.bincount(seen, weights, size) + prior  # the last code is an unseen level
        sums = torch.bincount(seen, weights * labels, size) + prior * mean
        rank = (sums / count).nan_to_num(-torch.inf).argsort(stable=True).argsort().float()
        inputs.append(rank[codes])
    return torch.cat(inputs, dim=1).numpy()
