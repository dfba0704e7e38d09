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
    vocabulary samples a second in training, by number of hash buckets of a column
    balance    samples a second in training, by balancing strategy and batch size
    read       seconds of reading, encoding and caching a Parquet file of 30 columns
    stream     speed and memory of encoding in shards and of training from disk, beside training from memory
    time_to_auroc  seconds from a command to a validation AUROC of income: mmoe and other libraries

    batch_sizes=32,256,1024,8192   batch sizes of `train`, `busy`, `ranks`, `vocabulary`, `balance` and
                                   `time_to_auroc`
    batch=32                   batch size of `experts` and `replicas`
    strategies=                strategies of `balance` beside `constant`, such as pcgrad,famo; empty: all
    models=dselect_k,adatt,stem,aitm   models of `balance` beside mmoe, with constant weights; empty: none
    buckets=1000,1000000       numbers of hash buckets for `vocabulary`
    rows=10000000              rows of the file that `read` reads
    streamed_rows=50000000     rows that `stream` encodes in shards and trains on for an epoch
    resident_rows=2000000      rows that `stream` trains on from memory
    dask_rows=8000000          rows that `stream` encodes with one Dask worker and with two; 0: none
    experts=1,2,4,8,16,32,64,128   numbers of experts for `experts`
    repeats=1,5,20             `memory` trains on this many copies of the rows
    rounds=3                   repetitions. The tables show medians; `read` and the trainings of `stream` on
                               `resident_rows` have a line for each, and `memory` and `replicas` ignore it
    seconds=2                  duration of each training and each loop in a round of `train` and `experts`
    threads=2                  threads of each process; `busy` compares threads=auto, 1 and 2
    replicas=16                number of replicas in `replicas`
    peers=                     `train`, `busy`, `time_to_auroc`: a Python for scripts/peers.py; empty: none
    peers_script=              a script instead of scripts/peers.py; it must take and print the same
    out=                       folder for NAME.json, NAME.md and, if speeds are measured, NAME.png

All other arguments are overrides for the training, such as data.dir=/path/to/census.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import (
    bench_balance,
    bench_busy,
    bench_experts,
    bench_memory,
    bench_ranks,
    bench_read,
    bench_replicas,
    bench_start,
    bench_stream,
    bench_train,
    bench_vocabulary,
    time_to_auroc,
)
from benchmarks.measurement import SCRIPTS, Bench
from benchmarks.result_table import result_table, speed_figure
from options import parse, stop

DEFAULTS = {
    "batch_sizes": "32,256,1024,8192", "batch": "32", "experts": "1,2,4,8,16,32,64,128", "repeats": "1,5,20",
    "buckets": "1000,1000000", "rows": "10000000", "streamed_rows": "50000000", "resident_rows": "2000000",
    "dask_rows": "8000000",
    "rounds": "3", "seconds": "2", "threads": "2", "replicas": "16", "peers": "", "peers_script": "",
    "out": "", "strategies": "", "models": "dselect_k,adatt,stem,aitm",
}  # fmt: skip
MINIMUMS = {
    **dict.fromkeys(["rounds", "threads", "batch", "replicas", "rows", "streamed_rows", "resident_rows"], 1),
    "dask_rows": 0,
}
BENCHMARKS: dict[str, Any] = {  # the module of each, with a function `measure`
    "train": bench_train, "busy": bench_busy, "experts": bench_experts, "start": bench_start,
    "memory": bench_memory, "ranks": bench_ranks, "replicas": bench_replicas,
    "vocabulary": bench_vocabulary, "balance": bench_balance, "read": bench_read,
    "stream": bench_stream, "time_to_auroc": time_to_auroc,
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
    options["peers_script"] = options["peers_script"] or str(SCRIPTS / "peers.py")
    with tempfile.TemporaryDirectory() as scratch:
        found = BENCHMARKS[name].measure(Bench(options, overrides), Path(scratch))
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
