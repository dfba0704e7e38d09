"""The training, validation and test rows of a data set.

N rows, C categorical columns, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmoe.data.batch import Batch, take
from mmoe.data.schema import Schema, Task
from mmoe.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """Encoded rows by split (`train`, `val`, `test`), with the position (from 0) of each in its file."""

    schema: Schema
    splits: Mapping[str, Batch]
    positions: Mapping[str, Tensor]


def split_in_half(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted validation and test positions: a random 1:1 split of the test file (paper, section 6.3)."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[: num_rows // 2].sort().values, order[num_rows // 2 :].sort().values


def assemble(
    schema: Schema, train: Batch, held_out: Batch, split_seed: int, sources: tuple[str, str]
) -> Dataset:
    """Make a data set: halve the held-out rows into validation and test rows, and check all labels.

    `sources` are the paths of the training and the held-out rows, for errors.

    Raises:
        UserError: a task has only one class in a split.
    """
    val, test = split_in_half(len(held_out.labels), split_seed)
    splits = {"train": train, "val": take(held_out, val), "test": take(held_out, test)}
    positions = {"train": torch.arange(len(train.labels)), "val": val, "test": test}
    for name, rows in splits.items():
        check_labels(rows.labels, schema.tasks, f"{sources[name != 'train']}, {name} rows")
    num_rows = {name: len(where) for name, where in positions.items()}
    return Dataset(replace(with_modes(schema, train.levels), num_rows=num_rows), splits, positions)


def with_modes(schema: Schema, levels: Tensor) -> Schema:
    """The schema with each column's most frequent level in the training rows `levels` [N, C]."""
    counts = torch.bincount(levels.flatten(), minlength=schema.num_levels)[: schema.num_levels]
    by_column = torch.split(counts, [len(column.levels) for column in schema.categorical])
    categorical = tuple(
        replace(column, mode=column.levels[int(column_counts.argmax())] if column.levels else "")
        for column, column_counts in zip(schema.categorical, by_column, strict=True)
    )
    return replace(schema, categorical=categorical)


def check_labels(labels: Tensor, tasks: Sequence[Task], source: str) -> None:
    """Raise UserError if a binary task has only one class in `labels` [N, T]; `source` names the rows."""
    for task, mean in zip(tasks, labels.double().mean(0).tolist(), strict=True):
        if task.is_binary and mean in (0.0, 1.0):
            what = f"{'every' if mean else 'no'} row has one of {list(task.positive)}"
            rule = f"task {task.name} must have rows of both classes, but {what}"
            raise UserError(f"{source}, column {task.column}: {rule}")
