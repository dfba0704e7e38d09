"""Seconds of reading, encoding and caching a Parquet file of 30 columns."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench
from benchmarks.random_table import write_table


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Seconds of reading 15 numbers and 15 columns of levels, alone and with encoding and caching."""
    count, path = int(bench.options["rows"]), folder / "rows.parquet"
    write_table(path, count, 15, [5, 10, 20, 50, 100, 200, 500, 1000, 2, 3, 4, 8, 16, 32, 64])
    code = (
        "import sys, time; from mmoe.data.csv_options import CsvOptions\n"
        "from mmoe.data.table_data import TableData; from mmoe.data.table_files import read_batches\n"
        "path, cache = sys.argv[1:]; start = time.perf_counter()\n"
        "for part in read_batches([path], CsvOptions()): pass\n"
        "read = time.perf_counter(); columns = [f'number_{i}' for i in range(15)]\n"
        "columns = dict.fromkeys(columns, 'numeric') | {f'level_{i}': 'categorical' for i in range(15)}\n"
        "data = TableData(train=path, test={'fraction': 0.1}, columns=columns,"
        " tasks={'first': {'column': 'first'}}, cache_dir=cache, stream=False)\n"
        "data.dataset; print(read - start, time.perf_counter() - read)"
    )
    lines = []
    for _ in bench.rounds:
        cache = tempfile.mkdtemp(dir=folder)  # in which no rows are encoded yet
        out, _, memory = bench.run("-c", code, str(path), cache)
        shutil.rmtree(cache)
        read, encoded = map(float, out.split())
        lines.append({
            "rows": count, "reading alone: seconds": read, "reading and encoding: seconds": encoded,
            "rows a second": count / encoded, "MB": memory,
        })  # fmt: skip
    return {"lines": lines}
