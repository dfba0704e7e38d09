"""Compare training from disk and training from memory: the test AUROCs of the same rows and seeds.

usage: python scripts/compare_streaming.py data.dir=... [option=value ...] [overrides]

    rows=3000000         training rows; they are drawn from the official training file
    runs=8               seeds of each kind of training; each seed shuffles the rows in its own way
    folder=runs/compare_streaming   files, shards and run folders; finished runs are used again
    out=docs/results/streaming      folder for the table and the results of all runs

One half of the official test rows is for validation, and the other is tested. The files hold the
training rows in two orders: random, and sorted by age, so that neighbouring rows are alike. All other
arguments are overrides for the trainings.
"""

import json
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from commands import train_once
from options import parse, stop
from report_text import mean_text, table, write_report
from stored_results import store_settings

from mmoe.data.census import read
from mmoe.data.census_files import COLUMNS, NUMERIC, find_census_files

DEFAULTS = {
    "data.dir": None, "rows": "3000000", "runs": "8",
    "folder": "runs/compare_streaming", "out": "docs/results/streaming",
}  # fmt: skip
TASKS = {
    "income": {"column": "income", "positive": ["50000+."]},
    "marital": {"column": "marital_status", "positive": ["Never married"]},
}
KINDS = {"memory": "false", "disk": "true"}  # where rows are during training, and the value of data.stream


def main() -> None:
    """Write the files, train from memory and from disk, and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"rows": 1, "runs": 2})
    if not options["data.dir"]:
        stop("data.dir: must be the folder of the official files")
    folder = Path(options["folder"]).absolute() / options["rows"]
    store_settings(folder / "settings.json", {}, overrides)
    runs = []
    for order in ("random", "by age"):
        config = write_files(folder / order.replace(" ", "_"), order, options)
        for (kind, stream), seed in product(KINDS.items(), range(int(options["runs"]))):
            run = config.parents[1] / f"{kind}{seed}"
            train_once(
                run, f"hydra.searchpath=[file://{config.parents[1]}]", "data=rows", f"data.stream={stream}",
                f"seed={seed}", "trainer.max_epochs=1", "figures=false", *overrides,
            )  # fmt: skip
            test = json.loads((run / "metrics.json").read_text())["test"]
            values = {f"{task}/auroc": test[task]["auroc"] for task in TASKS}
            runs.append({"order": order, "from": kind, "seed": seed} | values)
    report(pd.DataFrame(runs), Path(options["out"]))


def write_files(folder: Path, order: str, options: dict[str, str]) -> Path:
    """Write training rows, validation and test rows and their YAML in a folder, unless they are there."""
    config = folder / "data" / "rows.yaml"
    if config.exists():
        return config
    files = find_census_files(options["data.dir"], "official", "", folder)
    rows, others, random = read(files.train), read(files.test), np.random.default_rng(0)
    drawn = rows.iloc[random.integers(0, len(rows), int(options["rows"]))]
    drawn = drawn.sort_values("age", kind="stable") if order == "by age" else drawn
    is_test = random.permutation(len(others)) < len(others) // 2
    config.parent.mkdir(parents=True, exist_ok=True)
    for name, frame in (("train", drawn), ("validation", others[~is_test]), ("test", others[is_test])):
        frame.to_parquet(folder / f"{name}.parquet", index=False, row_group_size=2**18)
    labels = [task["column"] for task in TASKS.values()]
    inputs = [name for name in COLUMNS if name not in (*labels, "instance_weight")]
    values: dict[str, Any] = {
        name: str(folder / f"{name}.parquet") for name in ("train", "validation", "test")
    }
    values |= {
        "_target_": "mmoe.data.table_data.TableData", "tasks": TASKS, "cache_dir": str(folder / "cache"),
        "stream": "auto", "batch_size": 1024, "seed": "${seed}",
        "columns": {name: "numeric" if name in NUMERIC else "categorical" for name in inputs},
    }  # fmt: skip
    config.write_text(json.dumps(values))
    return config


def report(runs: pd.DataFrame, out: Path) -> None:
    """Write all runs, and the table of means, spreads and differences."""
    lines = []
    for order, found in runs.groupby("order", sort=False):
        for metric in [f"{task}/auroc" for task in TASKS]:
            memory, disk = (found[found["from"] == kind].set_index("seed")[metric] for kind in KINDS)
            distances = [abs(a - b) for a, b in combinations(memory, 2)]
            lines.append([
                str(order), metric,
                *(mean_text(values) for values in (memory, disk)),
                mean_text(disk - memory, "+.5f"),
                f"{(disk - memory).abs().mean():.5f}", f"{np.mean(distances):.5f}",
            ])  # fmt: skip
    header = [
        "order of the rows", "test", "from memory", "from disk", "disk - memory",
        "mean distance of disk and memory, same seed", "mean distance of two seeds, from memory",
    ]  # fmt: skip
    write_report(out, "streaming", [table(header, lines)], runs)


if __name__ == "__main__":
    main()
