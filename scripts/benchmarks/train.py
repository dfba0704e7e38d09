"""Samples a second in training by batch size: mmoe, loops without Lightning, and other libraries."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measurement import SCRIPTS, Bench, speeds_by

MMOE = "mmoe"


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by batch size. The other libraries are measured up to 1,024."""

    def speeds_at(batch: int) -> dict[str, float]:
        return mmoe_and_loops(bench, folder, batch) | (bench.peers(batch) if batch <= 1024 else {})

    return speeds_by("batch size", bench.integers("batches"), bench, speeds_at)


def mmoe_and_loops(bench: Bench, folder: Path, batch: int, *overrides: str) -> dict[str, float]:
    """Samples a second of a training by mmoe, then of each loop in contestants.py."""
    # An estimate of how many epochs fit into the time, for epochs of 66,000 rows, and for 1,000 steps or
    # 400,000 rows a second, whichever is fewer rows.
    epochs = max(3, round(float(bench.options["seconds"]) * min(1000 * batch, 400_000) / 66_000))
    clock, *_ = bench.train(folder, f"data.batch_size={batch}", f"trainer.max_epochs={epochs}", *overrides)
    loops = [str(SCRIPTS / "contestants.py"), str(batch), bench.options["seconds"]]
    out, *_ = bench.run(*loops, *bench.overrides, *overrides)
    return {MMOE: clock["steps"], f"{MMOE}, whole Trainer.fit": clock["fit"]} | json.loads(out)
