"""Speed and memory of encoding in shards and of training from disk, beside training from memory."""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.measurement import FIXED_LENGTH, Bench
from mmoe.data.census import read
from mmoe.data.census_files import COLUMNS, NUMERIC, find_census_files

FILE_ROWS = 1_000_000  # rows in each file of resampled rows


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Encode many rows in shards and train an epoch on them, and train on fewer rows in memory.

    Rows are drawn from the training file of `data.dir`, with an id of 1,000,000 levels.
    """
    write_resampled_rows(folder / "rows", Path(bench.data_dir), int(bench.options["streamed_rows"]))
    files = sorted(map(str, (folder / "rows").iterdir()))
    labels = ("income", "marital_status")
    inputs = [name for name in COLUMNS if name not in (*labels, "instance_weight")]
    values = {
        "_target_": "mmoe.data.table_data.TableData", "train": files,
        "validation": {"fraction": 0.02}, "test": {"fraction": 0.02},
        "columns": {name: "numeric" if name in NUMERIC else "categorical" for name in inputs}
        | {"user_id": "categorical"},
        "tasks": {"income": {"column": "income", "positive": ["50000+."]},
                  "never_married": {"column": "marital_status", "positive": ["Never married"]}},
        "cache_dir": str(folder / "cache"), "stream": True, "engine": "local", "batch_size": 8192,
    }  # fmt: skip
    config = folder / "data" / "stream.yaml"
    config.parent.mkdir()
    config.write_text(json.dumps(values))
    encode = (
        "import json, sys; from mmoe.data.table_data import TableData\n"
        "values = json.loads(sys.argv[1]); values.pop('_target_')\n"
        "print(sum(TableData(**values).dataset.schema.num_rows.values()))"
    )
    lines = []

    def add(what: str, rows: int, seconds: float, memory: float) -> None:
        lines.append(
            {"what": what, "rows": rows, "seconds": seconds, "rows a second": rows / seconds, "MB": memory}
        )

    def measure_encoding(what: str, changes: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        out, *_ = bench.run("-c", encode, json.dumps(values | changes))
        add(what, int(out.split()[-1]), time.perf_counter() - start, bench.anonymous_memory)

    def measure_training(what: str, *overrides: str) -> None:
        run = Path(tempfile.mkdtemp(dir=folder))
        options = [
            "data=stream",
            f"hydra.searchpath=[file://{folder}]",
            "trainer.max_epochs=1",
            "logger=none",
        ]
        options += [override for override in bench.overrides if not override.startswith("data.")]
        bench.run("-m", "mmoe.train", *FIXED_LENGTH, *options, *overrides, f"hydra.run.dir={run}")
        metrics = json.loads((run / "metrics.json").read_text())
        rows, speed = metrics["steps"] * metrics["global_batch"], metrics["samples_per_second"]
        add(what, rows, rows / speed, bench.anonymous_memory)

    measure_encoding("encoding in shards", {})
    measure_training("an epoch from disk")
    few = files[: max(1, int(bench.options["resident_rows"]) // FILE_ROWS)]
    for _ in bench.rounds:
        measure_training("an epoch from disk", f"data.train=[{','.join(few)}]")
        measure_training("an epoch from memory", f"data.train=[{','.join(few)}]", "data.stream=false")
    if int(bench.options["dask_rows"]):
        part = files[: max(1, int(bench.options["dask_rows"]) // FILE_ROWS)]
        for count in (1, 2):
            bench.environment["OMP_NUM_THREADS"] = str(count)  # the number of workers that are started
            changes = {"train": part, "engine": "dask", "cache_dir": str(folder / f"dask{count}")}
            measure_encoding(f"encoding in shards, Dask workers: {count}", changes)
    return {"lines": lines}


def write_resampled_rows(folder: Path, data_dir: Path, num_rows: int) -> None:
    """Write Parquet files of a million census rows each, drawn from the training file, with a user's id."""
    frame = read(find_census_files(str(data_dir), "official", "", folder).train)
    rows, random = pa.Table.from_pandas(frame, preserve_index=False), np.random.default_rng(0)
    folder.mkdir()
    for number, start in enumerate(range(0, num_rows, FILE_ROWS)):
        count = min(FILE_ROWS, num_rows - start)
        part = rows.take(pa.array(random.integers(0, len(rows), count)))
        part = part.append_column("user_id", pa.array(random.integers(0, 1_000_000, count)))
        parquet.write_table(part, folder / f"{number:04d}.parquet", row_group_size=1 << 18)
