"""Frames of raw rows to tensors, with statistics of the training frame only.

N rows, C categorical columns, M numeric columns, T tasks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rtdl_num_embeddings import compute_bins
from torch import Tensor

from mmoe.arguments import check_integers
from mmoe.data.schema import LARGEST, Categorical, Numeric, Schema, Task
from mmoe.errors import UserError

FREQUENT = 10  # training rows with a number, from which on it counts as frequent
QUANTILES = 2**24  # distinct numbers that torch.quantile takes at most
HUGE = 1e38  # larger numbers count as this one: differences of float32 numbers must not overflow
LEAST_WIDTH = 1e-30  # of a bin: one over it must not overflow
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")  # kinds, of pandas


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

    Columns of text, and pandas categoricals, have levels; a row without one has no level there. Other columns
    must have a number in every row. Regressions get the mean and deviation of their column.

    `num_bins` is the most bins that a numeric column gets; one with fewer distinct values has an edge at
    each of them.

    Raises:
        UserError: a column is missing, occurs twice or is of another type, a number or a label is missing or
            not finite, or a task's positive level does not occur.
    """
    check_integers(2, num_bins=num_bins)
    for task in tasks:
        levels = _occurring(*_labels(frame, task.column)) if task.is_binary else []
        for level in task.positive:
            # Where none occurs, `check_labels` has more to say.
            if level not in levels and set(levels) & set(task.positive):
                raise UserError(
                    f"data.tasks.{task.name}.positive: {level!r} is not a level of {task.column} in the"
                    f" training file; the levels are {levels}"
                )
    categorical = [name for name in features if _has_levels(_column(frame, name))]
    return Schema(
        tuple(Categorical(name, tuple(_occurring(*_levels(frame, name)))) for name in categorical),
        tuple(
            fit_numeric(name, _numbers(frame, name), num_bins) for name in features if name not in categorical
        ),
        tuple(task if task.is_binary else _fit_task(task, _numbers(frame, task.column)) for task in tasks),
    )


def fit_numeric(name: str, values: np.ndarray, num_bins: int) -> Numeric:
    """Scale, bins and frequent values of a column's training values [N].

    Raises:
        UserError: there are none, or one is not finite.
    """
    _check_finite(name, values)
    if np.abs(values).max() > HUGE:
        values = np.clip(values, -HUGE, HUGE)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    # Quantiles of the distinct values: of all values they would give a money column, zero in 96 of 100
    # rows, a single bin.
    distinct, counts = np.unique(values.astype(np.float32), return_counts=True)
    frequent = tuple(distinct[counts >= FREQUENT].tolist())
    edges = torch.from_numpy(distinct)
    if len(edges) > num_bins + 1:
        if len(edges) > QUANTILES:
            edges = edges[torch.linspace(0, len(edges) - 1, QUANTILES, dtype=torch.float64).round().long()]
        (edges,) = compute_bins(edges[:, None], n_bins=num_bins)
    bins = _apart(edges.tolist())
    if len(bins) == 1:
        return Numeric(name, mean, 1.0, _only_bin(mean), frequent)
    return Numeric(name, mean, std, bins, frequent)


def _apart(edges: Sequence[float]) -> tuple[float, ...]:
    """Increasing edges, without those that are so near to the one before that 1 / width would overflow."""
    kept = [edges[0]]
    for edge in edges[1:]:
        if edge - kept[-1] >= LEAST_WIDTH:
            kept.append(edge)
    return tuple(kept)


def _only_bin(value: float) -> tuple[float, float]:
    """A bin that begins with a value: of width 1, or up to the next number that float32 has."""
    if np.float32(value) < np.float32(value + 1):
        return value, value + 1
    rounded = np.float32(value)
    return float(rounded), float(np.nextafter(rounded, np.float32(np.inf)))


def _fit_task(task: Task, values: np.ndarray) -> Task:
    """A regression with the scale of its training labels [N], as float32, which the labels of rows are."""
    values = values.astype(np.float64)
    mean, std = np.float32(values.mean()), np.float32(values.std())
    constant = not std > 0 or values.min() == values.max()
    return replace(task, mean=float(mean), std=1.0 if constant else float(std))


def encode(frame: pd.DataFrame, schema: Schema) -> Rows:
    """Turn raw rows into tensors; a level that is missing, or not in the schema, becomes the unseen code.

    Columns of levels may be pandas categoricals, or hold text, integers or booleans, which count as text.
    Errors number the rows from 0, in the order of the frame.

    Raises:
        UserError: a column is missing, occurs twice or is of another type, or a number or a label is missing
            or not finite.
    """
    dtype = np.int16 if schema.num_levels <= np.iinfo(np.int16).max else np.int32
    codes = np.empty((len(frame), len(schema.categorical)), dtype)
    offset = 0
    for i, column in enumerate(schema.categorical):
        found, levels = _levels(frame, column.name)
        known = pd.Index(column.levels, dtype=object).get_indexer(pd.Index(levels, dtype=object))
        lookup = np.where(known >= 0, known + offset, schema.num_levels)
        codes[:, i] = np.append(lookup, schema.num_levels)[found]  # the last one, -1, is of a missing level
        offset += len(column.levels)
    numerics = np.empty((len(frame), len(schema.numeric)), np.float32)
    for i, number in enumerate(schema.numeric):
        numerics[:, i] = _numbers(frame, number.name)
    labels = np.empty((len(frame), len(schema.tasks)), np.float32)
    for i, task in enumerate(schema.tasks):
        if task.is_binary:
            found, levels = _labels(frame, task.column)
            labels[:, i] = np.array([level in task.positive for level in levels], dtype=bool)[found]
        else:
            labels[:, i] = _numbers(frame, task.column)
    return Rows(torch.from_numpy(codes), torch.from_numpy(numerics), torch.from_numpy(labels))


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    count = int((frame.columns == name).sum())
    if not count:
        raise UserError(f"column {name} is missing; the columns are {_some(frame)}")
    if count > 1:
        raise UserError(f"column {name} occurs {count} times")
    return frame[name]


def _some(frame: pd.DataFrame) -> str:
    names = [str(name) for name in frame.columns]
    return ", ".join(names[:50]) + (", ..." if len(names) > 50 else "")


def _has_levels(values: pd.Series) -> bool:
    """Whether a column is categorical: pandas says so, or it does not hold numbers."""
    return isinstance(values.dtype, pd.CategoricalDtype | pd.StringDtype) or _kind(values) not in NUMBERS


def _kind(values: pd.Series) -> str:
    """What a column holds, in pandas's words; missing values aside."""
    return pd.api.types.infer_dtype(values, skipna=True)


def _levels(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str]]:
    """Levels of a column: where each row's is in a list, -1 where it is missing, [N], and the list."""
    values = _column(frame, name)
    if isinstance(values.dtype, pd.CategoricalDtype):
        found, levels = values.cat.codes.to_numpy(), values.cat.categories
    else:
        try:
            found, levels = pd.factorize(values)
        except TypeError:  # lists and the like
            raise UserError(f"column {name}: must hold text, holds {_kind(values)} objects") from None
    for level in levels:
        if not isinstance(level, str | Integral | np.bool_):
            raise UserError(f"column {name}: must hold text, holds {level!r}")
    return found, [str(level) for level in levels]


def _labels(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str]]:
    """`_levels` of a column that must have one in every row."""
    found, levels = _levels(frame, name)
    if (found < 0).any():
        raise UserError(f"column {name}, row {int(np.argmax(found < 0))}: must have a label, it is missing")
    return found, levels


def _occurring(found: np.ndarray, levels: Sequence[str]) -> list[str]:
    """Those levels that some row has, sorted."""
    return sorted({levels[i] for i in np.unique(found[found >= 0])})


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The numbers of a column [N], which must all be finite."""
    series = _column(frame, name)
    if isinstance(series.dtype, pd.CategoricalDtype) or _kind(series) not in NUMBERS:
        raise UserError(f"column {name}: must hold numbers, holds {_kind(series)} values")
    values = series.to_numpy()
    if values.dtype.kind not in "iuf":
        values = series.to_numpy(np.float64, na_value=np.nan)
    if len(values):
        _check_finite(name, values)
    return values


def _check_finite(name: str, values: np.ndarray) -> None:
    """Numbers [N], at least one, that stay finite as float32."""
    if not len(values):
        raise UserError(f"column {name}: must have at least one row")
    wrong = ~(np.abs(values) <= LARGEST)
    if wrong.any():
        row = int(np.argmax(wrong))
        value = "missing" if np.isnan(values[row]) else values[row]
        raise UserError(f"column {name}, row {row}: must be a finite number that float32 has, is {value}")


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
        UserError: a task has only one class in a split.
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
            replace(column, mode=column.levels[int(frequent.argmax())] if column.levels else "")
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
    """Raise UserError if a binary task has only one class in `labels` [N, T]; `source` names the rows."""
    for task, mean in zip(tasks, labels.double().mean(0).tolist(), strict=True):
        if task.is_binary and mean in (0.0, 1.0):
            which = "has" if mean else "lacks"
            raise UserError(
                f"{source}, column {task.column}: task {task.name} must have rows of both classes, but every"
                f" row {which} one of {list(task.positive)}"
            )
