"""Benchmarks: ratios of times measured in turn, in one run, on the machine at hand.

usage: python scripts/bench.py train|experts|start|memory|ranks|replicas [option=value ...] [overrides]

    train      samples a second of training at several batch sizes, ours beside other loops and programs
    experts    the same at several numbers of experts
    start      seconds until --help, a composed config, the first step, and the encoded rows
    memory     peak memory and seconds of encoding and training, by number of rows
    ranks      samples a second of one process and of two
    replicas   R replicas in one process against R separate processes

    batches=32,256,1024,8192   of `train` and `ranks`
    batch=32                   of `experts`
    experts=1,2,4,8,16,32,64,128
    repeats=1,5,20             of `memory`: how often the rows are repeated
    rounds=3                   each measures everything once; the medians count
    seconds=2                  of each loop in a round
    threads=2                  of each process
    replicas=16                of `replicas`
    peers=                     a Python that has deepctr-torch, torch-rechub and scikit-learn, for `train`
    peers_script=              what it runs: PEERS_SCRIPT DATA_DIR BATCH EPOCHS prints "NAME ... N samples/s"
    out=                       a folder for NAME.json, NAME.md and, of the first two, NAME.png

Anything else is an override for the training, such as data.dir=/path/to/census.
"""

import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from options import parse, stop
from tables import table

from mmoe.data.census_files import NAMES

mpl.use("Agg")
import matplotlib.pyplot as plt

DEFAULTS = {
    "batches": "32,256,1024,8192", "batch": "32", "experts": "1,2,4,8,16,32,64,128", "repeats": "1,5,20",
    "rounds": "3", "seconds": "2", "threads": "2", "replicas": "16", "peers": "", "peers_script": "",
    "out": "",
}  # fmt: skip
LEAST_ONE = ["rounds", "threads", "batch", "replicas"]
HERE = Path(__file__).parent
OURS, LIMIT, BARE = "mmoe", "first layer's products alone", "bare loop"
QUIET = ["figures=false", "callbacks.early_stopping=null"]  # all train for the same number of epochs
Times = dict[str, list[float]]


class Bench:
    """What the benchmarks share: options, overrides, and how a process is run."""

    def __init__(self, options: Mapping[str, str], overrides: Sequence[str]) -> None:
        self.options, self.overrides = options, list(overrides)
        self.environment = os.environ | {
            "OMP_NUM_THREADS": options["threads"],
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        }

    def numbers(self, name: str) -> list[int]:
        """A list of integers among the options."""
        values = self.options[name].split(",")
        if not all(value.isdigit() and int(value) for value in values):
            stop(f"{name}={self.options[name]}: must be integers of at least 1")
        return [int(value) for value in values]

    def rounds(self) -> range:
        """One after the other."""
        return range(int(self.options["rounds"]))

    def run(self, *command: str) -> tuple[str, float, float]:
        """Output, seconds and peak memory in MB of a Python process; its mistakes end the benchmark."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen([sys.executable, *command], stdout=out, env=self.environment)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            code = process.returncode = os.waitstatus_to_exitcode(status)
            if code:
                raise SystemExit(code)
            out.seek(0)
            return out.read(), seconds, usage.ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))

    def train(self, folder: Path, *overrides: str) -> tuple[dict[str, float], float, float]:
        """What the clock found in a training, its seconds and its peak memory in MB."""
        path = folder / "clock.json"
        clock = f"+callbacks.clock={{_target_: contestants.Clock, path: '{path}'}}"
        command = ["experiment=census", *QUIET, *self.overrides, *overrides, clock]
        command.append(f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}")
        _, seconds, memory = self.run("-m", "mmoe.train", *command)
        return json.loads(path.read_text()), seconds, memory

    def contestants(self, batch: int, *overrides: str) -> dict[str, float]:
        """Samples a second of every loop of contestants.py."""
        arguments = [str(batch), self.options["seconds"], *self.overrides, *overrides]
        return json.loads(self.run(str(HERE / "contestants.py"), *arguments)[0])  # type: ignore[no-any-return]

    def peers(self, batch: int) -> dict[str, float]:
        """Samples a second of other programs, where their Python is given."""
        python, script = self.options["peers"], self.options["peers_script"]
        if not python:
            return {}
        folder = next((o.split("=", 1)[1] for o in self.overrides if o.startswith("data.dir=")), "")
        epochs = "1" if batch < 256 else "3"
        done = subprocess.run([python, script, folder, str(batch), epochs], capture_output=True, text=True)
        found = re.findall(r"^(\S+) .*?(\d+) samples/s", done.stdout, re.MULTILINE)
        if not found:
            stop(f"peers={python}: no samples/s from {script} ({done.stderr.strip()[-200:]})")
        return {name: float(number) for name, number in found}

    def row(self, folder: Path, batch: int, *overrides: str) -> dict[str, float]:
        """Samples a second of ours and of every loop, once, in turn."""
        epochs = max(3, round(float(self.options["seconds"]) * min(1000 * batch, 400_000) / 66_000))
        ours, *_ = self.train(folder, f"data.batch_size={batch}", f"trainer.max_epochs={epochs}", *overrides)
        return {OURS: ours["steps"], f"{OURS}, whole Trainer.fit": ours["fit"]} | self.contestants(
            batch, *overrides
        )


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each number over the rounds."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def bench_train(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by batch size."""
    batches = bench.numbers("batches")
    rounds: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    for _ in bench.rounds():
        for batch in batches:
            found = bench.row(folder, batch)
            rounds[batch].append(found | (bench.peers(batch) if batch <= 1024 else {}))
    return {
        "x": "batch size",
        "rounds": rounds,
        "samples_per_second": {b: medians(rounds[b]) for b in batches},
    }


def bench_experts(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by number of experts."""
    batch, experts = int(bench.options["batch"]), bench.numbers("experts")
    rounds: dict[int, list[dict[str, float]]] = {count: [] for count in experts}
    for _ in bench.rounds():
        for count in experts:
            rounds[count].append(bench.row(folder, batch, f"model.num_experts={count}"))
    speeds = {count: medians(rounds[count]) for count in experts}
    return {"x": "experts", "batch": batch, "rounds": rounds, "samples_per_second": speeds}


def bench_ranks(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second of one process, and of two that train together with the same batch size each."""
    batches = bench.numbers("batches")
    rounds: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    for _ in bench.rounds():
        for batch in batches:
            found = {}
            for name, trainer in (("one process", "cpu"), ("two processes", "ddp_cpu")):
                options = [f"data.batch_size={batch}", f"trainer={trainer}", "trainer.max_epochs=4"]
                found[name] = bench.train(folder, *options)[0]["steps"]
            rounds[batch].append(found)
    speeds = {batch: medians(rounds[batch]) for batch in batches}
    return {"x": "rows of a process and step", "rounds": rounds, "samples_per_second": speeds}


def bench_start(bench: Bench, folder: Path) -> dict[str, Any]:
    """Seconds until something is there; the import of torch and Lightning alone shows the machine."""
    encode = (
        "import sys, time, contestants as c; from mmoe.build import build\n"
        "with c.initialize_config_dir(str(c.CONF_DIR), version_base='1.3'):\n"
        "    config = c.compose('train', sys.argv[1:])\n"
        "start = time.perf_counter(); build(config, 'data').dataset; print(time.perf_counter() - start)"
    )
    rounds = []
    bench.train(folder, "trainer.max_epochs=1", "+trainer.limit_train_batches=2")  # fills the cache
    for _ in bench.rounds():
        found = {
            "import of torch and pytorch_lightning": bench.run("-c", "import torch, pytorch_lightning")[1]
        }
        found["--help"] = bench.run("-m", "mmoe.train", "--help")[1]
        found["--cfg job"] = bench.run("-m", "mmoe.train", "experiment=census", "--cfg", "job")[1]
        started = time.time()
        clock, *_ = bench.train(folder, "trainer.max_epochs=1", "+trainer.limit_train_batches=20")
        found["first training step, cached rows"] = clock["first_step"] - started
        with tempfile.TemporaryDirectory() as empty:
            arguments = ["experiment=census", *bench.overrides, f"data.cache_dir={empty}"]
            found["raw files to cached tensors"] = float(bench.run("-c", encode, *arguments)[0])
        rounds.append(found)
    return {"rounds": rounds, "seconds": medians(rounds)}


def bench_memory(bench: Bench, folder: Path) -> dict[str, Any]:
    """Peak memory and seconds of a training epoch, with encoding and with encoded rows."""
    given = next((o.split("=", 1)[1] for o in bench.overrides if o.startswith("data.dir=")), "")
    files = {name: next(Path(given).glob(f"{name}*"), None) if given else None for name in NAMES.values()}
    if None in files.values():
        stop(f"data.dir={given}: must hold {' and '.join(files)}")
    found = []
    for repeats in bench.numbers("repeats"):
        rows = folder / f"rows{repeats}"
        rows.mkdir()
        for name, file in files.items():
            _repeat(file, rows / name, repeats)
        options = [f"data.dir={rows}", f"data.cache_dir={rows}", "trainer.max_epochs=1"]
        line: dict[str, float] = {"repeats": repeats}
        line["rows"] = sum(path.read_bytes().count(b"\n") for path in rows.iterdir())
        for name, batch in (("encoding", 8192), ("encoded", 8192)):
            _, seconds, memory = bench.train(folder, *options, f"data.batch_size={batch}")
            line |= {f"{name}: MB": memory, f"{name}: seconds": seconds}
        line["cache: MB"] = sum(path.stat().st_size for path in rows.glob("*.npz")) / 2**20
        found.append(line)
    return {"lines": found}


def _repeat(source: Path, target: Path, times: int) -> None:
    """Write the lines of a plain or gzipped file so many times."""
    content = source.read_bytes()
    if source.suffix == ".gz":
        content = gzip.decompress(content)
    with target.open("wb") as out:
        for _ in range(times):
            out.write(content)


def bench_replicas(bench: Bench, folder: Path) -> dict[str, Any]:
    """R replicas in one process against R separate processes, one after another.

    Two of the R processes are run, one before and one after the replicas; the others take as long.
    """
    count, batch = int(bench.options["replicas"]), int(bench.options["batch"])
    common = [f"data.batch_size={batch}"]
    bench.train(folder, *common, "trainer.max_epochs=1")  # fills the cache
    before = bench.train(folder, *common)[1]
    together = bench.train(folder, *common, f"replicas={count}")[1]
    after = bench.train(folder, *common, "seed=1")[1]
    return {
        "replicas": count,
        "batch": batch,
        "seconds_of_one_run": [round(before, 1), round(after, 1)],
        "seconds_of_all_replicas": round(together, 1),
        "ratio_to_separate_runs": round(together / (count * statistics.mean([before, after])), 4),
    }


def speed_table(found: Mapping[str, Any]) -> list[str]:
    """Samples a second in thousands, with ours as a multiple of each, by batch size or experts."""
    speeds = found["samples_per_second"]
    names = list(dict.fromkeys(name for line in speeds.values() for name in line))
    first = names[0]
    rows = []
    for name in names:
        cells = []
        for line in speeds.values():
            ratio = f" ({line[first] / line[name]:.2f})" if name in line and name != first else ""
            cells.append(f"{line[name] / 1000:.1f}{ratio}" if name in line else "-")
        rows.append([name, *cells])
    title = f"thousand samples a second (and {first}'s multiple of it)"
    return table([title, *(f"{found['x']} {x}" for x in speeds)], rows)


def speed_figure(found: Mapping[str, Any], path: Path) -> None:
    """Samples a second of everything that was measured."""
    speeds = found["samples_per_second"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(name for line in speeds.values() for name in line):
        points = [(int(x), line[name]) for x, line in speeds.items() if name in line]
        width, dashes = (2.5, "-") if name == OURS else (1.2, ":" if name == LIMIT else "--")
        axes.plot(*zip(*points, strict=True), dashes, marker="o", linewidth=width, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel=found["x"], ylabel="samples a second")
    axes.set_xticks([int(x) for x in speeds], [str(x) for x in speeds])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The table of a benchmark."""
    if "samples_per_second" in found:
        return speed_table(found)
    if "lines" in found:
        keys = list(found["lines"][0])
        return table(
            keys, [[f"{line[key]:,.1f}".removesuffix(".0") for key in keys] for line in found["lines"]]
        )
    values = found.get("seconds", found)
    texts = {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return table(["what", "value"], map(list, texts.items()))


BENCHMARKS: dict[str, Callable[[Bench, Path], dict[str, Any]]] = {
    "train": bench_train, "experts": bench_experts, "start": bench_start, "memory": bench_memory,
    "ranks": bench_ranks, "replicas": bench_replicas,
}  # fmt: skip


def main() -> None:
    """Run the benchmark that the first argument names, and print its table and its figures as JSON."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in BENCHMARKS:
        stop(f"usage: bench.py {'|'.join(BENCHMARKS)} [option=value ...] [overrides]")
    options, overrides = parse(arguments, DEFAULTS, {}, dict.fromkeys(LEAST_ONE, 1))
    if not re.fullmatch(r"\d*\.?\d+", options["seconds"]) or not float(options["seconds"]):
        stop(f"seconds={options['seconds']}: must be a number above 0")
    if bool(options["peers"]) != bool(options["peers_script"]):
        stop("peers=...: must be given with peers_script=...")
    with tempfile.TemporaryDirectory() as scratch:
        found = BENCHMARKS[name](Bench(options, overrides), Path(scratch))
    found = {"benchmark": name, "cores": os.cpu_count(), "threads": options["threads"]} | found
    shown = "\n".join(lines(found))
    print(json.dumps(found, indent=1))
    print(shown)
    if options["out"]:
        folder = Path(options["out"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / f"{name}.md").write_text(shown + "\n")
        if "samples_per_second" in found:
            speed_figure(found, folder / f"{name}.png")


if __name__ == "__main__":
    main()
