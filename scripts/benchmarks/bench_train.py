"""Samples a second in training by batch size: mmoe, loops without Lightning, and other libraries."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench, speeds_by

MMOE = "mmoe"


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by batch size. The other libraries are measured up to 1,024."""

    def speeds_at(batch: int) -> dict[str, float]:
        return mmoe_and_loops(bench, folder, batch) | (bench.peers(batch) if batch <= 1024 else {})

    return speeds_by("batch size", bench.integers("batch_sizes"), bench, speeds_at)


def mmoe_and_loops(bench: Bench, folder: Path, batch: int, *overrides: str) -> dict[str, float]:
    """Samples a second of a training by mmoe, and of each loop in training_loops.py, for `seconds` each.

    mmoe trains one epoch more, which is not measured.
    """
    seconds = float(bench.options["seconds"])
    loops = [str(Path(__file__).parent / "training_loops.py"), str(batch), str(seconds)]
    out, *_ = bench.run(*loops, *bench.overrides, *overrides)
    found = json.loads(out)
    speeds, batches = found["samples_per_second"], found["batches"]
    epochs = seconds * speeds["bare loop"] / (batch * batches["train"])  # that fit into the time
    options = [f"data.batch_size={batch}", f"trainer.max_epochs={1 + max(1, round(epochs))}"]
    if epochs < 1:  # a part of an epoch, with the same part of its validation
        options += [
            f"++trainer.limit_{name}_batches={max(1, round(epochs * batches[name]))}" for name in batches
        ]
    clock, *_ = bench.train(folder, *options, *overrides)
    return {MMOE: clock["steps_speed"], f"{MMOE}, whole Trainer.fit": clock["fit_speed"]} | speeds
