"""Encode frames of raw rows as tensors.

N rows.
"""

from numbers import Integral

import numpy as np
import pandas as pd
import torch

from mmoe.data.batch import Batch
from mmoe.data.schema import Schema
from mmoe.data.schema_checks import MAX_FLOAT32
from mmoe.errors import UserError

# The results of pandas.api.types.infer_dtype for columns of numbers.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")


def encode(frame: pd.DataFrame, schema: Schema) -> Batch:
    """Encode raw rows; a level that is missing, or not in the schema, gets the unseen code.

    Categorical columns may be pandas categoricals, or hold text, integers or booleans, which become text.
    Errors count rows from 0, in the order of the frame.

    Raises:
        UserError: a column is missing, occurs twice or has the wrong type, or a number or a label is missing
            or not finite.
    """
    dtype = np.int16 if schema.num_levels <= np.iinfo(np.int16).max else np.int32
    levels = np.empty((len(frame), len(schema.categorical)), dtype)
    for i, (column, offset) in enumerate(zip(schema.categorical, schema.level_offsets, strict=False)):
        codes, found = factorize(frame, column.name)
        known = pd.Index(column.levels, dtype=object).get_indexer(pd.Index(found, dtype=object))
        lookup = np.where(known >= 0, known + offset, schema.num_levels)
        # A missing level has the code -1, which picks the appended unseen code.
        levels[:, i] = np.append(lookup, schema.num_levels)[codes]
    numbers = np.empty((len(frame), len(schema.numeric)), np.float32)
    for i, number in enumerate(schema.numeric):
        numbers[:, i] = numbers_of(frame, number.name)
    labels = np.empty((len(frame), len(schema.tasks)), np.float32)
    for i, task in enumerate(schema.tasks):
        if task.is_binary:
            codes, found = factorize_labels(frame, task.column)
            labels[:, i] = np.array([level in task.positive for level in found], dtype=bool)[codes]
        else:
            labels[:, i] = numbers_of(frame, task.column)
    return Batch(torch.from_numpy(levels), torch.from_numpy(numbers), torch.from_numpy(labels))


def decode(rows: Batch, schema: Schema) -> pd.DataFrame:
    """The inverse of `encode`: levels as text (None if unseen), numbers, and labels by task."""
    levels, numbers, labels = (tensor.cpu().numpy() for tensor in (rows.levels, rows.numbers, rows.labels))
    names = np.array([level for c in schema.categorical for level in c.levels] + [None], dtype=object)
    columns = {column.name: names[levels[:, i]] for i, column in enumerate(schema.categorical)}
    columns |= {number.name: numbers[:, i] for i, number in enumerate(schema.numeric)}
    return pd.DataFrame(columns | {f"{task.name}_label": labels[:, i] for i, task in enumerate(schema.tasks)})


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """The one column of this name.

    Raises:
        UserError: there is none, or more than one.
    """
    count = int((frame.columns == name).sum())
    if not count:
        names = [str(other) for other in frame.columns]
        listed = ", ".join(names[:50]) + ", ..." * (len(names) > 50)
        raise UserError(f"column {name} is missing; the columns are {listed}")
    if count > 1:
        raise UserError(f"column {name} occurs {count} times")
    return frame[name]


def is_categorical(values: pd.Series) -> bool:
    """Whether the column has a categorical or text dtype, or holds anything but numbers."""
    return isinstance(values.dtype, pd.CategoricalDtype | pd.StringDtype) or _kind(values) not in NUMBERS


def factorize(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str]]:
    """The codes [N] of a categorical column (-1: missing) and its levels, as by pandas.factorize."""
    values = column_of(frame, name)
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, levels = values.cat.codes.to_numpy(), values.cat.categories
    else:
        try:
            codes, levels = pd.factorize(values)
        except TypeError:  # the values are lists, say
            raise UserError(f"column {name}: must hold text, holds {_kind(values)} objects") from None
    for level in levels:
        if not isinstance(level, str | Integral | np.bool_):
            raise UserError(f"column {name}: must hold text, holds {level!r}")
    return codes, [str(level) for level in levels]


def factorize_labels(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str]]:
    """Like `factorize`, but no level may be missing."""
    codes, levels = factorize(frame, name)
    if (codes < 0).any():
        raise UserError(f"column {name}, row {int(np.argmax(codes < 0))}: must have a label, it is missing")
    return codes, levels


def numbers_of(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The numbers of a column [N], which must be finite in float32."""
    series = column_of(frame, name)
    if isinstance(series.dtype, pd.CategoricalDtype) or _kind(series) not in NUMBERS:
        raise UserError(f"column {name}: must hold numbers, holds {_kind(series)} values")
    values = series.to_numpy()
    if values.dtype.kind not in "iuf":
        values = series.to_numpy(np.float64, na_value=np.nan)
    check_finite_column(name, values)
    return values


def check_finite_column(name: str, values: np.ndarray) -> None:
    """Raise UserError for the first number [N] that is not finite in float32."""
    wrong = ~(np.abs(values) <= MAX_FLOAT32)
    if wrong.any():
        row = int(np.argmax(wrong))
        value = "missing" if np.isnan(values[row]) else values[row]
        rule = "must be a finite number in the range of float32"
        raise UserError(f"column {name}, row {row}: {rule}, is {value}")


def _kind(values: pd.Series) -> str:
    """The kind of values in a column, in pandas's words, ignoring missing values."""
    return pd.api.types.infer_dtype(values, skipna=True)
