"""Find a column of raw rows, and what kind of values it holds.

A column of a frame may have any dtype of pandas or Arrow.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.errors import UserError

# The results of pandas.api.types.infer_dtype for columns of numbers.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """The one column of this name. In the frame, its name may be a number or have blanks around it.

    Raises:
        UserError: there is none, or more than one.
    """
    is_named = np.asarray(frame.columns == name)
    if not is_named.any():
        is_named = np.array([str(other).strip() == name for other in frame.columns], bool)
    count = int(is_named.sum())
    if not count:
        names = [str(other) for other in frame.columns]
        listed = ", ".join(names[:50]) + ", ..." * (len(names) > 50)
        raise UserError(f"column {name} is missing; the columns are {listed}")
    if count > 1:
        raise UserError(f"column {name} occurs {count} times")
    return frame.iloc[:, int(is_named.argmax())]


def kind_of(values: pd.Series) -> str:
    """The kind of values in a column, in pandas's words, ignoring missing values."""
    return pd.api.types.infer_dtype(values, skipna=True)


def is_categorical(values: pd.Series) -> bool:
    """Whether the column has a categorical or text dtype, or holds anything but numbers."""
    if isinstance(values.dtype, pd.ArrowDtype):
        kind = values.dtype.pyarrow_dtype
        return not (is_number_type(kind) or pa.types.is_null(kind))
    return isinstance(values.dtype, pd.CategoricalDtype | pd.StringDtype) or kind_of(values) not in NUMBERS


def is_number_type(kind: pa.DataType) -> bool:
    """Whether a type is one of numbers or booleans."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def array_of(values: pd.Series) -> pa.Array:
    """The Arrow array of a column with an Arrow dtype."""
    array = pa.array(values)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
