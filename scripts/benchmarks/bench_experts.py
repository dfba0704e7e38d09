"""Samples a second in training by number of experts: mmoe, and loops without Lightning."""

from pathlib import Path
from typing import Any

from benchmarks.bench_train import mmoe_and_loops
from benchmarks.measurement import Bench, speeds_by


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by number of experts."""
    batch = int(bench.options["batch"])

    def speeds_at(count: int) -> dict[str, float]:
        return mmoe_and_loops(bench, folder, batch, f"model.num_experts={count}")

    return {"batch": batch} | speeds_by("experts", bench.integers("experts"), bench, speeds_at)
