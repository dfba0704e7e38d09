"""Seconds of R replicas in one process against R separate processes."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """R replicas in one process against R separate processes, one after another.

    Only two of the R processes are run, one before and one after the replicas. Their mean counts for all.
    """
    count, batch = int(bench.options["replicas"]), int(bench.options["batch"])
    common = [f"data.batch_size={batch}"]
    bench.train(folder, *common, "trainer.max_epochs=1")  # fills the cache
    before = bench.train(folder, *common)[1]
    together = bench.train(folder, *common, f"replicas={count}")[1]
    after = bench.train(folder, *common, "seed=1")[1]
    return {
        "replicas": count,
        "batch": batch,
        "seconds_of_one_run": [round(before, 1), round(after, 1)],
        "seconds_of_all_replicas": round(together, 1),
        "ratio_to_separate_runs": round(together / (count * statistics.mean([before, after])), 4),
    }
