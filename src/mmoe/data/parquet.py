"""Read raw rows from Parquet, by column name, chunk by chunk."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from mmoe.data.parse import LARGEST
from mmoe.data.schema import Schema


def read_parquet(path: Path, schema: Schema, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """The inputs of `schema` from a file that may have other columns too, in the file's order.

    Levels may be text, dictionaries of text, or integers, as pandas makes of codes.

    Raises:
        ValueError: the file cannot be read, lacks a column, or a value is missing or not a finite number.
    """
    levels = [column.name for column in schema.categorical]
    numbers = [column.name for column in schema.numeric]
    try:
        file = parquet.ParquetFile(path, read_dictionary=levels)
        missing = [name for name in (*levels, *numbers) if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path}: must have a column {missing[0]!r}, as the run's inputs are by name")
        start = 0
        for batch in file.iter_batches(chunk_rows, columns=[*levels, *numbers]):
            columns = {name: _level(batch[name], f"{path}, column {name}", start) for name in levels}
            yield pd.DataFrame(
                columns | {name: _number(batch[name], f"{path}, column {name}", start) for name in numbers}
            )
            start += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _level(array: pa.Array, where: str, start: int) -> pd.Categorical:
    if pa.types.is_integer(array.type):
        array = array.cast(pa.string())
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    if not (pa.types.is_string(array.type.value_type) or pa.types.is_large_string(array.type.value_type)):
        raise ValueError(f"{where}: must hold text, holds {array.type.value_type}")
    raw = [value.strip() for value in array.dictionary.to_pylist()]
    lookup = pd.Index(dict.fromkeys(raw))  # stripped levels may coincide
    codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
    found = lookup.get_indexer(raw)[codes] if raw else codes
    _refuse((codes < 0) | ((lookup == "")[found] if raw else True), where, start, "must not be empty")
    return pd.Categorical.from_codes(found, categories=lookup)


def _number(array: pa.Array, where: str, start: int) -> pd.Series:
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise ValueError(f"{where}: must hold numbers, holds {array.type}")
    values = pd.Series(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    _refuse(~(values.abs() <= LARGEST).to_numpy(), where, start, "must be a finite number")
    return values


def _refuse(wrong: object, where: str, start: int, rule: str) -> None:
    """Name the first row, from 1, that breaks a rule."""
    rows = pd.Series(wrong).to_numpy().nonzero()[0]
    if len(rows):
        raise ValueError(f"{where}, row {start + rows[0] + 1}: {rule}")
