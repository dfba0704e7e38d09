"""Encode labels, which of them are known, and the weights and groups of rows.

N rows, K rows of a split, T tasks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmoe.data.frame_values import known_labels
from mmoe.errors import RowError
from mmoe.raw.frame_column import column_of
from mmoe.raw.levels import levels_of
from mmoe.raw.numbers import numbers_of
from mmoe.tasks import Task


def encode_labels(frame: pd.DataFrame, tasks: Sequence[Task]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The labels, `known` and `weights` of a `Batch`, [N, T] each.

    `known` is None if all labels are known, and `weights` is None if no task has a weight.

    Raises:
        UserError: a column is missing or occurs twice, a label is invalid, or a weight is negative or
            missing.
    """
    shape = (len(frame), len(tasks))
    labels, known, weights = np.zeros(shape, np.float32), np.ones(shape, bool), np.ones(shape, np.float32)
    for i, task in enumerate(tasks):
        labels[:, i], known[:, i] = task.encode(known_labels(frame, task))
        labels[~known[:, i], i] = 0
        if task.weight:
            weights[:, i] = weights_of(frame, task.weight, known[:, i])
    is_weighted = any(task.weight for task in tasks)
    return (
        torch.from_numpy(labels),
        None if known.all() else torch.from_numpy(known),
        torch.from_numpy(weights) if is_weighted else None,
    )


def encode_groups(frame: pd.DataFrame, tasks: Sequence[Task], rows: np.ndarray) -> Tensor | None:
    """The `groups` of a `Batch` [K, 1] for the rows at the positions `rows` [K]; None if no task has groups.

    A group's number is a 64-bit hash of its name, so rows of different frames may share a group.

    Raises:
        UserError: the column is missing, or has no value in one of the rows.
    """
    name = next((task.group_by for task in tasks if task.group_by), None)
    if name is None:
        return None
    codes, names, _ = levels_of(column_of(frame, name).iloc[rows])
    if (codes < 0).any():
        row = int(rows[np.argmax(codes < 0)])
        raise RowError(name, row, "must have a value, because group_by needs one")
    hashes = pd.util.hash_array(np.array(names, dtype=object)).view(np.int64)
    return torch.from_numpy(hashes[codes][:, None])


def weights_of(frame: pd.DataFrame, name: str, needed: np.ndarray) -> np.ndarray:
    """The weights of rows in a column [N], 0 in rows where they are not `needed` [N].

    Raises:
        UserError: a weight that is needed is negative, missing or not a number.
    """
    values = numbers_of(column_of(frame, name)).astype(np.float64)
    wrong = needed & ~(values >= 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        value = "missing" if np.isnan(values[row]) else values[row]
        raise RowError(name, row, f"must be a weight of at least 0, is {value}")
    return np.where(needed, values, 0.0)


def decode_labels(labels: Tensor, known: Tensor | None, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Labels [N, T] as columns by name, missing where they are not `known` [N, T]."""
    values = labels.cpu().numpy()
    masks = np.ones(values.shape, bool) if known is None else known.cpu().numpy()
    return {
        f"{task.name}_label": task.decode(values[:, i], None if masks[:, i].all() else masks[:, i])
        for i, task in enumerate(tasks)
    }
