"""Benchmarks: ratios of times measured in turn, in one run, on the machine at hand.

usage: python scripts/bench.py replicas [data.dir=...] [replicas=16] [data.batch_size=32] [other overrides]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def run(overrides: Sequence[str], folder: Path) -> float:
    """Seconds of one `python -m mmoe.train`, start-up included."""
    command = [sys.executable, "-m", "mmoe.train", *overrides, f"hydra.run.dir={folder}"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def bench_replicas(overrides: Sequence[str]) -> dict[str, object]:
    """R replicas in one process against R separate processes, one after another.

    Two of the R processes are run, one before and one after the replicas; the others take as long.
    """
    given = dict(override.split("=", 1) for override in overrides)
    count = int(given.pop("replicas", 16))
    common = ["experiment=census", *(f"{k}={v}" for k, v in {"data.batch_size": 32, **given}.items())]
    common.append("callbacks.early_stopping=null")  # all train for the same number of epochs
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run([*common, "trainer.max_epochs=1"], folder / "warm")  # fills the cache
        before = run(common, folder / "before")
        together = run([*common, f"replicas={count}"], folder / "together")
        after = run([*common, "seed=1"], folder / "after")
        metrics = json.loads((folder / "together/metrics.json").read_text())
    alone = statistics.mean([before, after])
    return {
        "replicas": count,
        "overrides": common,
        "epochs": metrics["epochs"],
        "seconds_of_one_run": [round(before, 1), round(after, 1)],
        "seconds_of_all_replicas": round(together, 1),
        "ratio_to_separate_runs": round(together / (count * alone), 4),
    }


def main() -> None:
    """Run the benchmark that the first argument names, and print its figures as JSON."""
    benchmarks = {"replicas": bench_replicas}
    if len(sys.argv) < 2 or sys.argv[1] not in benchmarks:
        sys.exit(f"usage: bench.py {'|'.join(benchmarks)} [overrides]")
    print(json.dumps(benchmarks[sys.argv[1]](sys.argv[2:]), indent=1))


if __name__ == "__main__":
    main()
