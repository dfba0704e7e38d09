"""Read raw rows from any file that a run can score, delimited text or Parquet."""

from collections.abc import Generator
from pathlib import Path

import pandas as pd

from mmoe.data.delimited import read_delimited
from mmoe.data.parquet import read_parquet
from mmoe.data.schema import Schema
from mmoe.errors import UserError

TEXT = (".csv", ".tsv", ".txt", ".data", ".test")
PARQUET = (".parquet", ".pq", ".parq")


def read_chunks(path: Path, schema: Schema, chunk_rows: int) -> Generator[pd.DataFrame]:
    """Raw rows in the order of the file, in chunks with the inputs of `schema`.

    Args:
        path: a file whose name ends with one of `TEXT`, with or without .gz, or of `PARQUET`, in any case.
        schema: the schema of the run.
        chunk_rows: the number of rows to read from Parquet at once.

    Raises:
        UserError: the name has another ending; the file cannot be read or lacks a column; a value is invalid.
    """
    name = path.name.lower()
    if name.endswith(PARQUET):
        return read_parquet(path, schema, chunk_rows)
    if name.removesuffix(".gz").endswith(TEXT):
        return read_delimited(path, schema)
    listed = ", ".join((*TEXT, *(f"{end}.gz" for end in TEXT), *PARQUET))
    raise UserError(f"input={path}: must end with one of {listed}")
