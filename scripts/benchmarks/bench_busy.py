"""Samples a second in training, alone and beside a program that keeps a core busy."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench, speeds_by


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second with threads=auto, 1 and 2, alone and beside a program that keeps a core busy."""
    del bench.environment["OMP_NUM_THREADS"]  # it would decide instead of threads=auto

    def speeds_at(batch: int) -> dict[str, float]:
        options = [f"data.batch_size={batch}", "trainer.max_epochs=3"]
        steps = min(2000, 200_000 // batch)
        options += [f"+trainer.limit_train_batches={steps}", "+trainer.limit_val_batches=1"]

        def speeds(kind: str) -> dict[str, float]:
            own = {}
            for threads in ("auto", 1, 2):
                clock, *_ = bench.train(folder, f"threads={threads}", *options)
                own[f"mmoe, threads={threads}, {kind}"] = clock["steps_speed"]
            return own | {f"{name}, {kind}": speed for name, speed in bench.peers(batch).items()}

        found = speeds("quiet")
        with busy_core():
            return found | speeds("busy")

    return speeds_by("batch size", bench.integers("batch_sizes"), bench, speeds_at)


@contextmanager
def busy_core() -> Iterator[None]:
    """Run a program that keeps one core busy."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()
