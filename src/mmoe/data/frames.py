"""Turn a DataFrame into an Arrow table."""

from typing import Any

import pandas as pd
import pyarrow as pa

from mmoe.data.column_types import plain_type
from mmoe.data.csv_options import check_names
from mmoe.errors import UserError


def table_of_frame(frame: pd.DataFrame) -> pa.Table:
    """The columns of a DataFrame, without its index. Mixed objects and integers beyond 64 bits become text.

    Raises:
        UserError: a column name is neither text nor an integer, two are equal, or there are no rows
            or columns.
    """
    for name in frame.columns:
        if not isinstance(name, str | int):
            raise UserError(f"DataFrame: column names must be text or integers, one is {name!r}")
    names = [str(name).strip() for name in frame.columns]
    check_names(names, "DataFrame")
    if not names:
        raise UserError("DataFrame: must have at least one column; has none")
    if not len(frame):
        raise UserError("DataFrame: must have at least one row; has none")
    return pa.table([_array_of_series(frame.iloc[:, i]) for i in range(len(names))], names=names)


def _array_of_series(series: "pd.Series[Any]") -> pa.Array:
    if isinstance(series.dtype, pd.CategoricalDtype):
        levels = _array_of_series(series.cat.categories.to_series())
        codes = pa.array(series.cat.codes.to_numpy(), mask=series.isna().to_numpy())
        return pa.DictionaryArray.from_arrays(codes.cast(pa.int32()), levels)
    try:
        array = pa.Array.from_pandas(series)
    except (pa.ArrowException, TypeError, OverflowError):
        array = None
    # Mixed objects, integers beyond 64 bits, intervals and periods.
    if array is None or isinstance(array, pa.ExtensionArray):
        texts = [
            None if is_missing else str(value)
            for value, is_missing in zip(series, series.isna(), strict=True)
        ]
        return pa.array(texts, pa.string())
    chunks = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return chunks.cast(plain_type(chunks.type, keep_bytes=True))
