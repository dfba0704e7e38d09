"""A file of random rows, for the benchmarks `vocabulary` and `read`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet


def write_table(path: Path, num_rows: int, num_numbers: int, num_levels: Sequence[int]) -> None:
    """Write random rows as Parquet: numbers, text columns with these numbers of levels, and two labels."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for i in range(num_numbers):
        columns[f"number_{i}"] = random.normal(size=num_rows).astype(np.float32)
    for i, count in enumerate(num_levels):
        levels = pa.array([f"level {j}" for j in range(count)])
        codes = pa.array(random.integers(0, count, num_rows, dtype=np.int32))
        columns[f"level_{i}"] = pa.DictionaryArray.from_arrays(codes, levels)
    for name in ("first", "second"):
        columns[name] = random.integers(0, 2, num_rows, dtype=np.int8)
    parquet.write_table(pa.table(columns), path, row_group_size=1_000_000)
