"""The levels, numbers and labels in the columns of a frame, before they are encoded. N rows."""

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.data.columns import Categorical
from mmoe.raw.dates import DateFormat, date_part, dates_of, days
from mmoe.raw.frame_column import column_of
from mmoe.raw.levels import Levels, levels_of, multi_levels_of
from mmoe.raw.numbers import numbers_of
from mmoe.tasks import Task
from mmoe.tasks.labels import label_levels


def find_levels(frame: pd.DataFrame, column: Categorical, date_format: DateFormat | None) -> Levels:
    """The levels of a categorical column of raw rows.

    If they are a part of dates, `date_format` is the format of the dates.
    """
    values = column_of(frame, column.raw_name)
    if column.part:
        return date_part(dates_of(values, date_format or DateFormat()), column.part)
    return multi_levels_of(values, column.separator) if column.is_multi else levels_of(values)


def find_numbers(frame: pd.DataFrame, column: str, date_format: DateFormat | None) -> np.ndarray:
    """The numbers of a numeric column of raw rows [N], NaN where missing; dates are days since 1970.

    `date_format` is the format of dates; None for numbers.
    """
    values = column_of(frame, column)
    return numbers_of(values) if date_format is None else days(dates_of(values, date_format))


def known_labels(frame: pd.DataFrame, task: Task) -> pd.Series:
    """The label column of a task; labels in rows that `task.where` excludes are missing."""
    values = column_of(frame, task.column)
    if not task.where:
        return values
    if isinstance(values.dtype, pd.ArrowDtype) and pa.types.is_dictionary(values.dtype.pyarrow_dtype):
        values = values.astype(pd.ArrowDtype(pa.string()))
    codes, levels = label_levels(column_of(frame, task.where))
    is_known = [bool({level, level.lower()} & set(task.where_levels)) for level in levels]
    return values.where(np.array([*is_known, False])[codes])
