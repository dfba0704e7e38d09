"""How the programs of a benchmark are run and timed."""

import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from options import integers, stop

SCRIPTS = Path(__file__).parents[1]
# Without early stopping, all runs train for the same number of epochs.
FIXED_LENGTH = ["figures=false", "callbacks.early_stopping=null"]


class Bench:
    """The options and the overrides, and how a process is run and timed."""

    def __init__(self, options: Mapping[str, str], overrides: Sequence[str]) -> None:
        self.options, self.overrides = options, list(overrides)
        self.data_dir = next((o.split("=", 1)[1] for o in overrides if o.startswith("data.dir=")), "")
        self.anonymous_memory = 0.0
        self.rounds = range(int(options["rounds"]))
        self.environment = os.environ | {
            "OMP_NUM_THREADS": options["threads"],
            "PYTHONPATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")]),
        }

    def integers(self, name: str) -> list[int]:
        """The value of an option that is a list of integers of at least 1."""
        return integers(self.options, name, 1)

    def run(self, *arguments: str) -> tuple[str, float, float]:
        """Run Python; return its output, seconds and peak memory in MB. If it fails, exit with its code."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen([sys.executable, *arguments], stdout=out, env=self.environment)
            watch = threading.Thread(target=self._watch_memory, args=(process.pid,))
            watch.start()
            _, status, usage = os.wait4(process.pid, 0)
            watch.join()
            seconds = time.perf_counter() - start
            code = process.returncode = os.waitstatus_to_exitcode(status)
            if code:
                raise SystemExit(code)
            out.seek(0)
            return out.read(), seconds, usage.ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))

    def _watch_memory(self, process: int) -> None:
        """Store the peak of the anonymous memory in MB: what is resident, without memory-mapped files."""
        self.anonymous_memory, status = 0.0, Path(f"/proc/{process}/status")
        with suppress(OSError):  # the process has ended, or this is not Linux
            while found := re.search(r"RssAnon:\s+(\d+)", status.read_text()):
                self.anonymous_memory = max(self.anonymous_memory, int(found[1]) / 1024)
                time.sleep(0.05)

    def train(self, folder: Path, *overrides: str) -> tuple[dict[str, float], float, float]:
        """Train; return what `benchmarks.clock.Clock` measured, the seconds and the peak memory in MB."""
        path = folder / "clock.json"
        clock = f"+callbacks.clock={{_target_: benchmarks.clock.Clock, path: '{path}'}}"
        command = ["experiment=census_paper", *FIXED_LENGTH, *self.overrides, *overrides, clock]
        command.append(f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}")
        _, seconds, memory = self.run("-m", "mmoe.train", *command)
        return json.loads(path.read_text()), seconds, memory

    def peers(self, batch: int) -> dict[str, float]:
        """Samples a second of other libraries, if the option `peers` is given."""
        python, script = self.options["peers"], self.options["peers_script"]
        if not python:
            return {}
        command = [python, script, self.data_dir, str(batch), "1" if batch < 256 else "3"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        found = re.findall(r"^(\S+) .*?(\d+) samples/s", done.stdout, re.MULTILINE)
        if not found:
            stop(f"peers={python}: no samples/s from {script} ({done.stderr.strip()[-200:]})")
        return {name: float(number) for name, number in found}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each number over the rounds."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def speeds_by(
    x: str, values: Sequence[int], bench: Bench, measure: Callable[[int], dict[str, float]]
) -> dict[str, Any]:
    """Measure samples a second at each value of `x`, once in every round; take medians over the rounds."""
    rounds: dict[int, list[dict[str, float]]] = {value: [] for value in values}
    for _ in bench.rounds:
        for value in values:
            rounds[value].append(measure(value))
    speeds = {value: medians(found) for value, found in rounds.items()}
    return {"x": x, "rounds": rounds, "samples_per_second": speeds}


def read_bytes(path: Path) -> bytes:
    """The content of a plain or gzipped file."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
