"""Seconds from a command to a validation AUROC of income: mmoe and other libraries."""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from commands import compose_config
from options import stop

from benchmarks.measurement import Bench, read_bytes
from mmoe.build import build
from mmoe.data.census_files import FILE_NAMES, find_census_files

AUROCS = (0.945, 0.949)  # the script measures the seconds until a validation reaches each of them
PEERS = ("deepctr-torch", "torch-rechub")
PEER_EPOCHS = 10
Validations = list[tuple[float, float]]  # seconds since the command, and the AUROC


class ValidationTimes(pl.Callback):
    """Append the time and the AUROC of income of each validation in training to a file, as JSON lines."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            line = {"time": time.time(), "auroc": trainer.callback_metrics["val/income/auroc"].item()}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """The results of all programs, one line each; a cold start of mmoe has no encoded rows yet."""
    batch_sizes = bench.integers("batch_sizes")
    rows = folder / "rows"
    write_rows(bench.overrides, rows)
    found: dict[str, list[Validations]] = {}
    for _ in bench.rounds:
        for batch in batch_sizes:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                for start in ("cold", "warm"):
                    name = f"mmoe, batches of {batch}, {start}"
                    found.setdefault(name, []).append(mmoe_validations(bench, folder, batch, cache))
            for peer in PEERS if bench.options["peers"] else ():
                name = f"{peer}, batches of {batch}"
                found.setdefault(name, []).append(peer_validations(bench, peer, rows, batch))
    # The highest AUROC that each program reached in every round.
    best = {name: min(max(auroc for _, auroc in run) for run in runs) for name, runs in found.items()}
    peers = {name: value for name, value in best.items() if not name.startswith("mmoe")}
    wanted = {f"{auroc:.3f}": auroc for auroc in AUROCS}
    wanted |= {f"best of {name} ({value:.4f})": value for name, value in peers.items()}
    lines = []
    for name, runs in found.items():
        line: dict[str, Any] = {"program": name, "AUROC reached in every round": f"{best[name]:.4f}"}
        for title, auroc in wanted.items():
            line[f"seconds to {title}"] = seconds_to(auroc, runs)
        lines.append(line)
    return {"rounds": found, "lines": lines}


def seconds_to(wanted: float, runs: Sequence[Validations]) -> float | str:
    """The median over runs of the seconds to an AUROC of at least `wanted`; -: not reached in most runs."""
    first = [next((seconds for seconds, auroc in run if auroc >= wanted), float("inf")) for run in runs]
    median = statistics.median(first)
    return median if median < float("inf") else "-"


def mmoe_validations(bench: Bench, folder: Path, batch: int, cache: str) -> Validations:
    """The validations of `experiment=census`."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "validations"
    callback = f"+callbacks.times={{_target_: benchmarks.time_to_auroc.ValidationTimes, path: '{path}'}}"
    command = ["-m", "mmoe.train", "experiment=census", *bench.overrides, f"data.batch_size={batch}"]
    start = time.time()
    bench.run(*command, f"data.cache_dir={cache}", callback, f"hydra.run.dir={path.parent / 'run'}")
    return parse_validations(path.read_text().splitlines(), start)


def peer_validations(bench: Bench, peer: str, rows: Path, batch: int) -> Validations:
    """The validations of another library, whose script prints them as JSON lines."""
    command = [
        bench.options["peers"],
        bench.options["peers_script"],
        str(rows),
        str(batch),
        str(PEER_EPOCHS),
        peer,
    ]
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=bench.environment)
    found = parse_validations((line for line in done.stdout.splitlines() if line.startswith("{")), start)
    if not found:
        stop(f"peers={command[0]}: no validations from {command[1]} ({done.stderr.strip()[-200:]})")
    return found


def parse_validations(lines: Iterable[str], start: float) -> Validations:
    """JSON lines as seconds since `start`, and AUROCs."""
    parsed: Iterable[Mapping[str, float]] = map(json.loads, lines)
    return [(line["time"] - start, line["auroc"]) for line in parsed]


def write_rows(overrides: Sequence[str], folder: Path) -> None:
    """Write the training file, and the rows that mmoe validates on as the test file."""
    config = compose_config("experiment=census", *overrides)
    if not config.data.dir and config.data.source != "sample":
        stop("data.dir: must be the folder of the census files")
    files = find_census_files(config.data.dir, config.data.source, config.data.url, folder)
    validated = build(config, "data").dataset.positions["val"].tolist()
    folder.mkdir()
    (folder / FILE_NAMES["train"]).write_bytes(read_bytes(files.train))
    lines = read_bytes(files.test).splitlines(keepends=True)
    (folder / FILE_NAMES["test"]).write_bytes(b"".join(lines[i] for i in validated))
