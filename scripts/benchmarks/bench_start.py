"""Seconds until --help, a composed configuration, the first step, and encoded rows."""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import Bench, medians


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Seconds until each stage of a start. The bare import of torch and Lightning is there to compare."""
    encode = (
        "import sys, time, commands; from mmoe.build import build\n"
        "config = commands.compose_config(*sys.argv[1:]); start = time.perf_counter()\n"
        "build(config, 'data').dataset; print(time.perf_counter() - start)"
    )
    commands = {
        "import of torch and pytorch_lightning": ["-c", "import torch, pytorch_lightning"],
        "--help": ["-m", "mmoe.train", "--help"],
        "--cfg job": ["-m", "mmoe.train", "experiment=census", "--cfg", "job"],
    }
    rounds = []
    bench.train(folder, "trainer.max_epochs=1", "+trainer.limit_train_batches=2")  # fills the cache
    for _ in bench.rounds:
        found = {name: bench.run(*command)[1] for name, command in commands.items()}
        started = time.time()
        clock, *_ = bench.train(folder, "trainer.max_epochs=1", "+trainer.limit_train_batches=20")
        found["first training step, cached rows"] = clock["first_step"] - started
        with tempfile.TemporaryDirectory() as empty:
            arguments = ["experiment=census_paper", *bench.overrides, f"data.cache_dir={empty}"]
            found["raw files to cached tensors"] = float(bench.run("-c", encode, *arguments)[0])
        rounds.append(found)
    return {"rounds": rounds, "seconds": medians(rounds)}
