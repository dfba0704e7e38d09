"""Fit the schema of a data set to its training rows.

N rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from rtdl_num_embeddings import compute_bins

from mmoe.data import encode
from mmoe.data.schema import Categorical, Numeric, Schema, Task
from mmoe.data.schema_checks import MAX_MAGNITUDE
from mmoe.errors import UserError, check_integers

FREQUENT_ROWS = 10  # a value is frequent if it occurs in at least this many training rows
MAX_QUANTILE_VALUES = 2**24  # torch.quantile takes no more values than this
MIN_BIN_WIDTH = 1e-30  # 1 / width must not overflow


def fit_schema(frame: pd.DataFrame, features: Sequence[str], tasks: Sequence[Task], num_bins: int) -> Schema:
    """Compute vocabularies, scales and quantile bins of the `features` of a training frame.

    Columns of text and pandas categoricals are categorical, and may have missing levels. Other columns are
    numeric, and must have a number in every row. They get at most `num_bins` bins; with fewer distinct
    values, each value is an edge. A regression gets the mean and the standard deviation of its labels.

    Raises:
        UserError: a column is missing, occurs twice or has the wrong type, a number or a label is missing or
            not finite, or only some of a task's positive levels occur.
    """
    check_integers(2, num_bins=num_bins)
    for task in tasks:
        levels = _vocabulary(*encode.factorize_labels(frame, task.column)) if task.is_binary else []
        for level in task.positive:
            # If no positive level occurs, `check_labels` raises a better error.
            if level not in levels and set(levels) & set(task.positive):
                what = f"{level!r} is not a level of {task.column} in the training file"
                raise UserError(f"data.tasks.{task.name}.positive: {what}; the levels are {levels}")
    categorical = [name for name in features if encode.is_categorical(encode.column_of(frame, name))]
    numeric = [name for name in features if name not in categorical]
    return Schema(
        tuple(Categorical(name, tuple(_vocabulary(*encode.factorize(frame, name)))) for name in categorical),
        tuple(fit_numeric(name, encode.numbers_of(frame, name), num_bins) for name in numeric),
        tuple(_fit_task(task, frame) for task in tasks),
    )


def fit_numeric(name: str, values: np.ndarray, num_bins: int) -> Numeric:
    """Scale, bins and frequent values of a column with the training values [N].

    Raises:
        UserError: there are no values, or one is not finite.
    """
    if not len(values):
        raise UserError(f"column {name}: must have at least one row")
    encode.check_finite_column(name, values)
    if np.abs(values).max() > MAX_MAGNITUDE:
        values = np.clip(values, -MAX_MAGNITUDE, MAX_MAGNITUDE)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    # The edges are quantiles of the distinct values. With quantiles of all values, a column such as
    # capital_gains, which is 0 in 96 of 100 rows, would have a single bin.
    distinct, counts = np.unique(values.astype(np.float32), return_counts=True)
    frequent = tuple(distinct[counts >= FREQUENT_ROWS].tolist())
    edges = torch.from_numpy(distinct)
    if len(edges) > num_bins + 1:
        if len(edges) > MAX_QUANTILE_VALUES:
            chosen = torch.linspace(0, len(edges) - 1, MAX_QUANTILE_VALUES, dtype=torch.float64)
            edges = edges[chosen.round().long()]
        (edges,) = compute_bins(edges[:, None], n_bins=num_bins)
    bins = _drop_narrow_bins(edges.tolist())
    if len(bins) == 1:
        return Numeric(name, mean, 1.0, _bin_of_constant(mean), frequent)
    return Numeric(name, mean, std, bins, frequent)


def _drop_narrow_bins(edges: Sequence[float]) -> tuple[float, ...]:
    """Drop each edge that is closer than `MIN_BIN_WIDTH` to the last edge that is kept."""
    kept = [edges[0]]
    for edge in edges[1:]:
        if edge - kept[-1] >= MIN_BIN_WIDTH:
            kept.append(edge)
    return tuple(kept)


def _bin_of_constant(value: float) -> tuple[float, float]:
    """A bin from `value` to `value + 1`, or to the next float32 number if these two are equal in float32."""
    if np.float32(value) < np.float32(value + 1):
        return value, value + 1
    rounded = np.float32(value)
    return float(rounded), float(np.nextafter(rounded, np.float32(np.inf)))


def _fit_task(task: Task, frame: pd.DataFrame) -> Task:
    """Give a regression the mean and the std of its training labels, rounded to float32."""
    if task.is_binary:
        return task
    values = encode.numbers_of(frame, task.column).astype(np.float64)
    mean, std = np.float32(values.mean()), np.float32(values.std())
    is_constant = not std > 0 or values.min() == values.max()
    return replace(task, mean=float(mean), std=1.0 if is_constant else float(std))


def _vocabulary(codes: np.ndarray, levels: Sequence[str]) -> list[str]:
    """The levels that occur in `codes` [N], sorted."""
    return sorted({levels[i] for i in np.unique(codes[codes >= 0])})
