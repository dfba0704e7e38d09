"""Read raw rows of any file that a run can score: one entry for delimited text and Parquet."""

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
    """Raw rows in the file's order, chunk by chunk, with the columns of `schema` as levels and numbers.

    Args:
        path: a file of one of the endings `TEXT`, with or without .gz, or `PARQUET`; in either case.
        schema: that of the run.
        chunk_rows: rows that are read from Parquet at once.

    Raises:
        UserError: the ending is none of these; while reading, as `read_delimited` and `read_parquet`.
    """
    name = path.name.lower()
    if name.endswith(PARQUET):
        return read_parquet(path, schema, chunk_rows)
    if name.removesuffix(".gz").endswith(TEXT):
        return read_delimited(path, schema)
    listed = ", ".join((*TEXT, *(f"{end}.gz" for end in TEXT), *PARQUET))
    raise UserError(f"input={path}: must end with one of {listed}")
