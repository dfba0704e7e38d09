"""Samples a second in training with one process and with two."""

from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench, speeds_by


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second of one process, and of two that train together. Each has the full batch size."""

    def speeds_at(batch: int) -> dict[str, float]:
        options = [f"data.batch_size={batch}", "trainer.max_epochs=4"]
        trainers = {"one process": "cpu", "two processes": "ddp_cpu"}
        return {
            name: bench.train(folder, f"trainer={trainer}", *options)[0]["steps_speed"]
            for name, trainer in trainers.items()
        }

    return speeds_by("batch size per process", bench.integers("batch_sizes"), bench, speeds_at)
