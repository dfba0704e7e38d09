"""Benchmarks on this machine. Programs take turns within one run, so that their ratios are comparable.

usage: python scripts/bench.py train|busy|experts|start|memory|ranks|replicas|vocabulary|balance|read
       |stream|time_to_auroc [option=value ...] [overrides]

    train      samples a second in training, by batch size: mmoe, plain loops and other libraries
    busy       samples a second in training, alone and beside a program that keeps a core busy
    experts    samples a second in training, by number of experts: mmoe and plain loops
    start      seconds until --help, a composed configuration, the first step, and encoded rows
    memory     peak memory and seconds of encoding and training, by number of rows
    ranks      samples a second with one process and with two
    replicas   R replicas in one process against R separate processes
    vocabulary samples a second in training, by number of levels of a column
    balance    samples a second in training, by balancing strategy and batch size
    read       seconds of reading and encoding a Parquet file of 30 columns
    stream     speed and memory of encoding in shards and of training from disk, beside training from memory
    time_to_auroc  seconds from a command to a validation AUROC of income: mmoe and other libraries

    batches=32,256,1024,8192   batch sizes of `train`, `busy`, `ranks`, `vocabulary`, `balance` and
                               `time_to_auroc`
    batch=32                   batch size of `experts` and `replicas`
    strategies=                strategies of `balance` beside `constant`, such as pcgrad,famo; empty: all
    levels=1000,1000000        numbers of levels for `vocabulary`
    rows=10000000              rows of the file that `read` reads
    streamed_rows=50000000     rows that `stream` encodes in shards and trains on for an epoch
    resident_rows=2000000      rows that `stream` trains on from memory
    dask_rows=8000000          rows that `stream` encodes with one Dask worker and with two; 0: none
    experts=1,2,4,8,16,32,64,128   numbers of experts for `experts`
    repeats=1,5,20             `memory` trains on this many copies of the rows
    rounds=3                   each round measures everything once; the tables show medians over rounds
    seconds=2                  duration of each loop in a round
    threads=2                  threads of each process; `busy` compares threads=auto, 1 and 2
    replicas=16                number of replicas in `replicas`
    peers=                     `train`, `busy`, `time_to_auroc`: a Python for scripts/peers.py; empty: none
    peers_script=              another script instead of scripts/peers.py, with its arguments and output
    out=                       folder for NAME.json, NAME.md and, if speeds are measured, NAME.png

All other arguments are overrides for the training, such as data.dir=/path/to/census.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import time_to_auroc
from matplotlib.figure import Figure
from options import parse, stop
from pyarrow import parquet
from tables import table

from mmoe import CONF_DIR
from mmoe.data.census import read
from mmoe.data.census_files import COLUMNS, NAMES, NUMERIC, find_files

DEFAULTS = {
    "batches": "32,256,1024,8192", "batch": "32", "experts": "1,2,4,8,16,32,64,128", "repeats": "1,5,20",
    "levels": "1000,1000000", "rows": "10000000", "streamed_rows": "50000000", "resident_rows": "2000000",
    "dask_rows": "8000000",
    "rounds": "3", "seconds": "2", "threads": "2", "replicas": "16", "peers": "", "peers_script": "",
    "out": "", "strategies": "",
}  # fmt: skip
MINIMUMS = dict.fromkeys(["rounds", "threads", "batch", "replicas", "rows"], 1)
HERE = Path(__file__).parent
FILE_ROWS = 1_000_000  # rows in each file that `stream` writes
MMOE, LIMIT = "mmoe", "first layer's products alone"
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
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        }

    def integers(self, name: str) -> list[int]:
        """The value of an option that is a list of integers."""
        values = self.options[name].split(",")
        if not all(value.isdigit() and int(value) for value in values):
            stop(f"{name}={self.options[name]}: must be integers of at least 1")
        return [int(value) for value in values]

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
        """Train; return what `contestants.Clock` measured, the seconds and the peak memory in MB."""
        path = folder / "clock.json"
        clock = f"+callbacks.clock={{_target_: contestants.Clock, path: '{path}'}}"
        command = ["experiment=census_paper", *FIXED_LENGTH, *self.overrides, *overrides, clock]
        command.append(f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}")
        _, seconds, memory = self.run("-m", "mmoe.train", *command)
        return json.loads(path.read_text()), seconds, memory

    def mmoe_and_loops(self, folder: Path, batch: int, *overrides: str) -> dict[str, float]:
        """Samples a second of a training by mmoe, then of each loop in contestants.py."""
        # An estimate of how many epochs fit into the time, for epochs of 66,000 rows, and for 1,000 steps or
        # 400,000 rows a second, whichever is fewer rows.
        epochs = max(3, round(float(self.options["seconds"]) * min(1000 * batch, 400_000) / 66_000))
        clock, *_ = self.train(folder, f"data.batch_size={batch}", f"trainer.max_epochs={epochs}", *overrides)
        loops = [str(HERE / "contestants.py"), str(batch), self.options["seconds"]]
        out, *_ = self.run(*loops, *self.overrides, *overrides)
        return {MMOE: clock["steps"], f"{MMOE}, whole Trainer.fit": clock["fit"]} | json.loads(out)

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


def bench_train(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by batch size. The other libraries are measured up to 1,024."""

    def measure(batch: int) -> dict[str, float]:
        return bench.mmoe_and_loops(folder, batch) | (bench.peers(batch) if batch <= 1024 else {})

    return speeds_by("batch size", bench.integers("batches"), bench, measure)


def bench_busy(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second with threads=auto, 1 and 2, alone and beside a program that keeps a core busy."""
    del bench.environment["OMP_NUM_THREADS"]  # it would decide instead of threads=auto

    def measure(batch: int) -> dict[str, float]:
        options = [f"data.batch_size={batch}", "trainer.max_epochs=3"]
        steps = min(2000, 200_000 // batch)
        options += [f"+trainer.limit_train_batches={steps}", "+trainer.limit_val_batches=1"]

        def speeds(kind: str) -> dict[str, float]:
            own = {
                f"mmoe, threads={threads}, {kind}": bench.train(folder, f"threads={threads}", *options)[0][
                    "steps"
                ]
                for threads in ("auto", 1, 2)
            }
            return own | {f"{name}, {kind}": speed for name, speed in bench.peers(batch).items()}

        found = speeds("quiet")
        with busy_core():
            return found | speeds("busy")

    return speeds_by("batch size", bench.integers("batches"), bench, measure)


@contextmanager
def busy_core() -> Iterator[None]:
    """Run a program that keeps one core busy."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def bench_experts(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by number of experts."""
    batch = int(bench.options["batch"])

    def measure(count: int) -> dict[str, float]:
        return bench.mmoe_and_loops(folder, batch, f"model.num_experts={count}")

    return {"batch": batch} | speeds_by("experts", bench.integers("experts"), bench, measure)


def bench_ranks(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second of one process, and of two that train together. Each has the full batch size."""

    def measure(batch: int) -> dict[str, float]:
        options = [f"data.batch_size={batch}", "trainer.max_epochs=4"]
        trainers = {"one process": "cpu", "two processes": "ddp_cpu"}
        return {
            name: bench.train(folder, f"trainer={trainer}", *options)[0]["steps"]
            for name, trainer in trainers.items()
        }

    return speeds_by("batch size per process", bench.integers("batches"), bench, measure)


def bench_start(bench: Bench, folder: Path) -> dict[str, Any]:
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


def bench_memory(bench: Bench, folder: Path) -> dict[str, Any]:
    """Peak memory and seconds of a training epoch: first with raw files to encode, then with cached rows."""
    given = bench.data_dir
    files = {name: next(Path(given).glob(f"{name}*"), None) if given else None for name in NAMES.values()}
    if None in files.values():
        stop(f"data.dir={given}: must hold {' and '.join(files)}")
    found = []
    for repeats in bench.integers("repeats"):
        rows = folder / f"rows{repeats}"
        rows.mkdir()
        for name, file in files.items():
            write_copies(file, rows / name, repeats)
        options = [f"data.dir={rows}", f"data.cache_dir={rows}", "trainer.max_epochs=1"]
        line: dict[str, float] = {"repeats": repeats}
        line["rows"] = sum(path.read_bytes().count(b"\n") for path in rows.iterdir())
        for name in ("encoding", "encoded"):
            _, seconds, memory = bench.train(folder, *options, "data.batch_size=8192")
            line |= {f"{name}: MB": memory, f"{name}: seconds": seconds}
        line["cache: MB"] = sum(path.stat().st_size for path in rows.glob("*.npz")) / 2**20
        found.append(line)
    return {"lines": found}


def write_copies(source: Path, target: Path, count: int) -> None:
    """Write the content of a plain or gzipped file `count` times."""
    content = time_to_auroc.read(source)
    with target.open("wb") as out:
        for _ in range(count):
            out.write(content)


def bench_replicas(bench: Bench, folder: Path) -> dict[str, Any]:
    """R replicas in one process against R separate processes, one after another.

    Only two of the R processes are run, one before and one after the replicas. Their mean counts for all.
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


def bench_balance(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second of each balancing strategy, in the second of two short epochs."""
    every = sorted(path.stem for path in (CONF_DIR / "balance").glob("*.yaml"))
    chosen = bench.options["strategies"].split(",") if bench.options["strategies"] else every
    # The table compares the others with the first.
    names = ["constant", *(name for name in chosen if name != "constant")]

    def measure(batch: int) -> dict[str, float]:
        options = [f"data.batch_size={batch}", "trainer.max_epochs=2", "+trainer.limit_train_batches=150"]
        options += ["+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1"]
        return {name: bench.train(folder, f"balance={name}", *options)[0]["steps"] for name in names}

    return speeds_by("batch size", bench.integers("batches"), bench, measure)


def write_table(path: Path, num_rows: int, num_numbers: int, num_levels: Sequence[int]) -> None:
    """Write random rows as Parquet: numbers, text columns with these numbers of levels, and two labels."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for i in range(num_numbers):
        columns[f"number_{i}"] = random.normal(size=num_rows).astype(np.float32)
    for i, count in enumerate(num_levels):
        levels = pa.array([f"level {j}" for j in range(count)])
        codes = pa.array(random.integers(0, count, num_rows, dtype=np.int32))
        columns[f"level_{i}"] = pa.DictionaryArray.from_arrays(codes, levels)
    for name in ("first", "second"):
        columns[name] = random.integers(0, 2, num_rows, dtype=np.int8)
    parquet.write_table(pa.table(columns), path, row_group_size=1_000_000)


def bench_vocabulary(bench: Bench, folder: Path) -> dict[str, Any]:
    """Samples a second by batch size, for tables with a column of few and of many levels."""
    config = folder / "data" / "vocabulary.yaml"
    config.parent.mkdir()
    write_table(folder / "rows.parquet", 200_000, 5, [10, 50, 100, 5_000_000])

    def measure(batch: int) -> dict[str, float]:
        speeds = {}
        for count in bench.integers("levels"):
            kinds = {f"number_{i}": "numeric" for i in range(5)} | {
                f"level_{i}": "categorical" for i in range(3)
            }
            column = {"kind": "categorical", "encoding": "hash", "buckets": count, "size": 16}
            tasks = {name: {"column": name} for name in ("first", "second")}
            values = {
                "_target_": "mmoe.data.table.datamodule", "train": str(folder / "rows.parquet"),
                "test": {"fraction": 0.1}, "columns": kinds | {"level_3": column}, "tasks": tasks,
                "main_task": "first", "cache_dir": str(folder),
            }  # fmt: skip
            config.write_text(json.dumps(values))
            options = [
                f"+data.batch_size={batch}",
                "trainer.max_epochs=3",
                f"hydra.searchpath=[file://{folder}]",
            ]
            clock, *_ = bench.train(folder, "data=vocabulary", *options)
            speeds[f"{count:,} levels"] = clock["steps"]
        return speeds

    return speeds_by("batch size", bench.integers("batches"), bench, measure)


def bench_read(bench: Bench, folder: Path) -> dict[str, Any]:
    """Seconds of reading a Parquet file of 15 numbers and 15 columns of levels, and of encoding its rows."""
    count, path = int(bench.options["rows"]), folder / "rows.parquet"
    write_table(path, count, 15, [5, 10, 20, 50, 100, 200, 500, 1000, 2, 3, 4, 8, 16, 32, 64])
    code = (
        "import sys, time; from mmoe.data.csv_options import CsvOptions\n"
        "from mmoe.data.table import TableData; from mmoe.data.table_files import read_batches\n"
        "path, cache = sys.argv[1:]; start = time.perf_counter()\n"
        "for part in read_batches([path], CsvOptions()): pass\n"
        "read = time.perf_counter(); columns = [f'number_{i}' for i in range(15)]\n"
        "columns = dict.fromkeys(columns, 'numeric') | {f'level_{i}': 'categorical' for i in range(15)}\n"
        "data = TableData(train=path, test={'fraction': 0.1}, columns=columns,"
        " tasks={'first': {'column': 'first'}}, cache_dir=cache)\n"
        "data._encode(data._sources(), {}); print(read - start, time.perf_counter() - read)"
    )
    lines = []
    for _ in bench.rounds:
        out, _, memory = bench.run("-c", code, str(path), str(folder))
        read, encoded = map(float, out.split())
        lines.append({
            "rows": count, "reading alone: seconds": read, "reading and encoding: seconds": encoded,
            "rows a second": count / encoded, "MB": memory,
        })  # fmt: skip
    return {"lines": lines}


def write_resampled_rows(folder: Path, data_dir: Path, num_rows: int) -> None:
    """Write Parquet files of a million census rows each, drawn from the training file, with a user's id."""
    frame = read(find_files(str(data_dir), "official", "", folder).train)
    rows, random = pa.Table.from_pandas(frame, preserve_index=False), np.random.default_rng(0)
    folder.mkdir()
    for number, start in enumerate(range(0, num_rows, FILE_ROWS)):
        count = min(FILE_ROWS, num_rows - start)
        part = rows.take(pa.array(random.integers(0, len(rows), count)))
        part = part.append_column("user_id", pa.array(random.integers(0, 1_000_000, count)))
        parquet.write_table(part, folder / f"{number:04d}.parquet", row_group_size=1 << 18)


def bench_stream(bench: Bench, folder: Path) -> dict[str, Any]:
    """Encode many rows in shards and train an epoch on them, and train on fewer rows in memory.

    Rows are drawn from the training file of `data.dir`, with an id of 1,000,000 levels.
    """
    write_resampled_rows(folder / "rows", Path(bench.data_dir), int(bench.options["streamed_rows"]))
    files = sorted(map(str, (folder / "rows").iterdir()))
    labels = ("income", "marital_status")
    inputs = [name for name in COLUMNS if name not in (*labels, "instance_weight")]
    values = {
        "_target_": "mmoe.data.table.datamodule", "train": files,
        "validation": {"fraction": 0.02}, "test": {"fraction": 0.02},
        "columns": {name: "numeric" if name in NUMERIC else "categorical" for name in inputs}
        | {"user_id": "categorical"},
        "tasks": {"income": {"column": "income", "positive": ["50000+."]},
                  "never_married": {"column": "marital_status", "positive": ["Never married"]}},
        "cache_dir": str(folder / "cache"), "stream": True, "engine": "local", "batch_size": 8192,
    }  # fmt: skip
    config = folder / "data" / "stream.yaml"
    config.parent.mkdir()
    config.write_text(json.dumps(values))
    encode = (
        "import json, sys; from mmoe.data.table import TableData\n"
        "values = json.loads(sys.argv[1]); values.pop('_target_')\n"
        "print(sum(TableData(**values).dataset.schema.num_rows.values()))"
    )
    lines = []

    def add(what: str, rows: int, seconds: float, memory: float) -> None:
        lines.append(
            {"what": what, "rows": rows, "seconds": seconds, "rows a second": rows / seconds, "MB": memory}
        )

    def measure_encoding(what: str, changes: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        out, *_ = bench.run("-c", encode, json.dumps(values | changes))
        add(what, int(out.split()[-1]), time.perf_counter() - start, bench.anonymous_memory)

    def measure_training(what: str, *overrides: str) -> None:
        run = Path(tempfile.mkdtemp(dir=folder))
        options = [
            "data=stream",
            f"hydra.searchpath=[file://{folder}]",
            "trainer.max_epochs=1",
            "logger=none",
        ]
        bench.run("-m", "mmoe.train", *FIXED_LENGTH, *options, *overrides, f"hydra.run.dir={run}")
        metrics = json.loads((run / "metrics.json").read_text())
        rows, speed = metrics["steps"] * metrics["global_batch"], metrics["samples_per_second"]
        add(what, rows, rows / speed, bench.anonymous_memory)

    measure_encoding("encoding in shards", {})
    measure_training("an epoch from disk")
    few = files[: max(1, int(bench.options["resident_rows"]) // FILE_ROWS)]
    for _ in bench.rounds:
        measure_training("an epoch from disk", f"data.train=[{','.join(few)}]")
        measure_training("an epoch from memory", f"data.train=[{','.join(few)}]", "data.stream=false")
    if int(bench.options["dask_rows"]):
        part = files[: max(1, int(bench.options["dask_rows"]) // FILE_ROWS)]
        for count in (1, 2):
            bench.environment["OMP_NUM_THREADS"] = str(count)  # the number of workers that are started
            changes = {"train": part, "engine": "dask", "cache_dir": str(folder / f"dask{count}")}
            measure_encoding(f"encoding in shards, Dask workers: {count}", changes)
    return {"lines": lines}


def speed_table(found: Mapping[str, Any]) -> str:
    """Samples a second in thousands. In parentheses: the speed of the first program divided by this speed."""
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
    title = f"thousand samples a second (how many times as fast {first} is)"
    return table([title, *(f"{found['x']} {x}" for x in speeds)], rows)


def speed_figure(found: Mapping[str, Any], path: Path) -> None:
    """Draw the samples a second of all programs."""
    speeds = found["samples_per_second"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for line in speeds.values() for name in line):
        points = [(int(x), line[name]) for x, line in speeds.items() if name in line]
        width, dashes = (2.5, "-") if name == MMOE else (1.2, ":" if name == LIMIT else "--")
        axes.plot(*zip(*points, strict=True), dashes, marker="o", linewidth=width, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel=found["x"], ylabel="samples a second")
    axes.set_xticks([int(x) for x in speeds], [str(x) for x in speeds])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def result_table(found: Mapping[str, Any]) -> str:
    """The results of a benchmark as a Markdown table."""
    if "samples_per_second" in found:
        return speed_table(found)
    if "lines" in found:
        rows = [list(map(line_text, line.values())) for line in found["lines"]]
        return table(found["lines"][0], rows)
    values = found.get("seconds", found)
    texts = {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return table(["what", "value"], map(list, texts.items()))


def line_text(value: float | str) -> str:
    """A cell of a table."""
    return value if isinstance(value, str) else f"{value:,.1f}".removesuffix(".0")


BENCHMARKS: dict[str, Callable[[Bench, Path], dict[str, Any]]] = {
    "train": bench_train, "busy": bench_busy, "experts": bench_experts, "start": bench_start,
    "memory": bench_memory, "ranks": bench_ranks, "replicas": bench_replicas,
    "vocabulary": bench_vocabulary, "balance": bench_balance, "read": bench_read, "stream": bench_stream,
    "time_to_auroc": time_to_auroc.measure,
}  # fmt: skip


def main() -> None:
    """Run the benchmark that the first argument names, and print its results as JSON and as a table."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in BENCHMARKS:
        stop(f"usage: bench.py {'|'.join(BENCHMARKS)} [option=value ...] [overrides]")
    options, overrides = parse(arguments, DEFAULTS, {}, MINIMUMS)
    if not re.fullmatch(r"\d*\.?\d+", options["seconds"]) or not float(options["seconds"]):
        stop(f"seconds={options['seconds']}: must be a number above 0")
    if options["peers"] and not shutil.which(options["peers"]):
        stop(f"peers={options['peers']}: must be a Python program")
    options["peers_script"] = options["peers_script"] or str(HERE / "peers.py")
    with tempfile.TemporaryDirectory() as scratch:
        found = BENCHMARKS[name](Bench(options, overrides), Path(scratch))
    found = {"benchmark": name, "cores": os.cpu_count(), "threads": options["threads"]} | found
    texts = {"json": json.dumps(found, indent=1), "md": result_table(found)}
    print("\n".join(texts.values()))
    if options["out"]:
        folder = Path(options["out"])
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (folder / f"{name}.{suffix}").write_text(text + "\n")
        if "samples_per_second" in found:
            speed_figure(found, folder / f"{name}.png")


if __name__ == "__main__":
    main()
