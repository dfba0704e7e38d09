"""Samples a second in training, by number of hash buckets of a column and batch size."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench, speeds_by
from benchmarks.random_table import write_table


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by batch size, with a column of very many levels in few and in many hash buckets."""
    config = folder / "data" / "vocabulary.yaml"
    config.parent.mkdir()
    write_table(folder / "rows.parquet", 200_000, 5, [10, 50, 100, 5_000_000])

    def speeds_at(batch: int) -> dict[str, float]:
        speeds = {}
        for count in bench.integers("buckets"):
            kinds = {f"number_{i}": "numeric" for i in range(5)} | {
                f"level_{i}": "categorical" for i in range(3)
            }
            column = {"kind": "categorical", "encoding": "hash", "buckets": count, "size": 16}
            tasks = {name: {"column": name} for name in ("first", "second")}
            values = {
                "_target_": "mmoe.data.table_data.TableData", "train": str(folder / "rows.parquet"),
                "test": {"fraction": 0.1}, "columns": kinds | {"level_3": column}, "tasks": tasks,
                "main_task": "first", "cache_dir": str(folder),
            }  # fmt: skip
            config.write_text(json.dumps(values))
            options = [
                f"+data.batch_size={batch}",
                "trainer.max_epochs=3",
                f"hydra.searchpath=[file://{folder}]",
            ]
            clock, *_ = bench.train(folder, "data=vocabulary", *options)
            speeds[f"{count:,} buckets"] = clock["steps_speed"]
        return speeds

    return speeds_by("batch size", bench.integers("batch_sizes"), bench, speeds_at)
