"""Frames of raw rows to tensors, with statistics of the training frame only.

N rows, C categorical columns, M numeric columns, T tasks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rtdl_num_embeddings import compute_bins
from torch import Tensor

from mmoe.data.schema import Categorical, Numeric, Schema, Task

FREQUENT = 10  # training rows with a number, from which on it counts as frequent


class Rows(NamedTuple):
    """Rows as tensors; a batch is a slice of them. With rows of their own for R replicas, R is in front.

    Shape:
        codes: [N, C], integers. The levels of all columns are numbered in one sequence, column by column;
            an unseen level is `schema.num_levels` in every column.
        numerics: [N, M], float32, as in the file: scaling is the network's.
        labels: [N, T], float32; those of binary tasks are 0 or 1.
    """

    codes: Tensor
    numerics: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """The rows of `train`, `val` and `test`, and the positions (from 0) in the file they came from."""

    schema: Schema
    splits: Mapping[str, Rows]
    positions: Mapping[str, Tensor]


def fit_schema(frame: pd.DataFrame, features: Sequence[str], tasks: Sequence[Task], num_bins: int) -> Schema:
    """Take vocabularies, scales and quantile bins of `features` from the training frame.

    `num_bins` is the most bins that a numeric column gets; one with fewer distinct values has an edge at
    each of them.

    Raises:
        ValueError: a task's positive level does not occur.
    """
    for task in tasks:
        levels = sorted(frame[task.column].unique()) if task.is_binary else []
        for level in task.positive:
            # Where none occurs, `check_labels` has more to say.
            if level not in levels and set(levels) & set(task.positive):
                raise ValueError(
                    f"data.tasks.{task.name}.positive: {level!r} is not a level of {task.column} in the"
                    f" training file; the levels are {levels}"
                )
    categorical = [c for c in features if isinstance(frame[c].dtype, pd.CategoricalDtype)]
    return Schema(
        tuple(Categorical(c, tuple(sorted(frame[c].unique()))) for c in categorical),
        tuple(fit_numeric(c, frame[c].to_numpy(), num_bins) for c in features if c not in categorical),
        tuple(tasks),
    )


def fit_numeric(name: str, values: np.ndarray, num_bins: int) -> Numeric:
    """Scale, bins and frequent values of a column's training values [N]."""
    mean, std = float(values.mean()), float(values.std())
    # Quantiles of the distinct values: of all values they would give a money column, zero in 96 of 100
    # rows, a single bin.
    distinct, counts = np.unique(values.astype(np.float32), return_counts=True)
    frequent = tuple(distinct[counts >= FREQUENT].tolist())
    edges = torch.from_numpy(distinct)
    if len(edges) == 1:
        return Numeric(name, mean, 1.0, (mean, mean + 1.0), frequent)
    if len(edges) > num_bins + 1:
        (edges,) = compute_bins(edges[:, None], n_bins=num_bins)
    return Numeric(name, mean, std, tuple(edges.tolist()), frequent)


def encode(frame: pd.DataFrame, schema: Schema) -> Rows:
    """Turn raw rows into tensors; levels that the schema does not have become its unseen code."""
    dtype = np.int16 if schema.num_levels <= np.iinfo(np.int16).max else np.int32
    codes = np.empty((len(frame), len(schema.categorical)), dtype)
    offset = 0
    for i, column in enumerate(schema.categorical):
        found = frame[column.name].cat
        known = pd.Index(column.levels).get_indexer(found.categories)
        lookup = np.where(known >= 0, known + offset, schema.num_levels).astype(dtype)
        codes[:, i] = lookup[found.codes]
        offset += len(column.levels)
    numerics = np.empty((len(frame), len(schema.numeric)), np.float32)
    for i, number in enumerate(schema.numeric):
        numerics[:, i] = frame[number.name]
    labels = np.empty((len(frame), len(schema.tasks)), np.float32)
    for i, task in enumerate(schema.tasks):
        values = frame[task.column]
        labels[:, i] = (values.isin(task.positive) if task.is_binary else values).to_numpy()
    return Rows(torch.from_numpy(codes), torch.from_numpy(numerics), torch.from_numpy(labels))


def decode(rows: Rows, schema: Schema) -> pd.DataFrame:
    """The inverse of `encode`: levels by name (None where unseen), numbers, and labels by task."""
    codes, numerics, labels = (tensor.cpu().numpy() for tensor in rows)
    names = np.array([level for c in schema.categorical for level in c.levels] + [None], dtype=object)
    columns = {column.name: names[codes[:, i]] for i, column in enumerate(schema.categorical)}
    columns |= {number.name: numerics[:, i] for i, number in enumerate(schema.numeric)}
    return pd.DataFrame(columns | {f"{task.name}_label": labels[:, i] for i, task in enumerate(schema.tasks)})


def split_in_half(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Validation and test positions: a random 1:1 split of the test file (paper, section 6.3), sorted."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[: num_rows // 2].sort().values, order[num_rows // 2 :].sort().values


def assemble(schema: Schema, train: Rows, rest: Rows, split_seed: int, sources: tuple[str, str]) -> Dataset:
    """All of `train` trains, `rest` is halved; `sources` name both in errors.

    Raises:
        ValueError: a task has only one class in a split.
    """
    val, test = split_in_half(len(rest.labels), split_seed)
    splits = {"train": train, "val": take(rest, val), "test": take(rest, test)}
    positions = {"train": torch.arange(len(train.labels)), "val": val, "test": test}
    for name, rows in splits.items():
        check_labels(rows.labels, schema.tasks, f"{sources[name != 'train']}, {name} rows")
    num_rows = {name: len(where) for name, where in positions.items()}
    return Dataset(replace(with_modes(schema, train.codes), num_rows=num_rows), splits, positions)


def with_modes(schema: Schema, codes: Tensor) -> Schema:
    """The schema with the most frequent level of each column in the training codes [N, C]."""
    counts = torch.bincount(codes.flatten(), minlength=schema.num_levels)[: schema.num_levels]
    by_column = torch.split(counts, [len(column.levels) for column in schema.categorical])
    return replace(
        schema,
        categorical=tuple(
            replace(column, mode=column.levels[int(frequent.argmax())])
            for column, frequent in zip(schema.categorical, by_column, strict=True)
        ),
    )


def take(rows: Rows, index: Tensor) -> Rows:
    """The rows at the positions `index` [K], in its order."""
    return Rows(*(tensor.index_select(-2, index) for tensor in rows))


def split(rows: Rows, size: int, count: int) -> Iterator[Rows]:
    """`count` batches of `size` rows, without copying them; the last one has the rest."""
    sizes = [size] * (count - 1)
    sizes.append(rows.labels.shape[-2] - sum(sizes))
    tensors: Iterable[Any] = rows
    return map(Rows._make, zip(*(tensor.split(sizes, -2) for tensor in tensors), strict=True))


def check_labels(labels: Tensor, tasks: Sequence[Task], source: str) -> None:
    """Raise ValueError if a binary task has only one class in `labels` [N, T]; `source` names the rows."""
    for task, mean in zip(tasks, labels.double().mean(0).tolist(), strict=True):
        if task.is_binary and mean in (0.0, 1.0):
            which = "has" if mean else "lacks"
            raise ValueError(
                f"{source}, column {task.column}: task {task.name} must have rows of both classes, but every"
                f" row {which} one of {list(task.positive)}"
            )
