"""Samples a second in training, by balancing strategy or descendant of MMoE, and by batch size."""

from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench, speeds_by
from mmoe import CONF_DIR


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second with each strategy and of each descendant, in the second of two short epochs."""
    every = sorted(path.stem for path in (CONF_DIR / "balance").glob("*.yaml"))
    chosen = bench.options["strategies"].split(",") if bench.options["strategies"] else every
    # The table compares the others with the first.
    choices = {name: f"balance={name}" for name in ["constant", *chosen]}
    choices |= {name: f"model={name}" for name in bench.options["models"].split(",") if name}

    def speeds_at(batch: int) -> dict[str, float]:
        options = [f"data.batch_size={batch}", "trainer.max_epochs=2", "+trainer.limit_train_batches=150"]
        options += ["+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1"]
        return {
            name: bench.train(folder, choice, *options)[0]["steps_speed"] for name, choice in choices.items()
        }

    return speeds_by("batch size", bench.integers("batch_sizes"), bench, speeds_at)
