"""Separate what makes the census results differ between runs: split, seed, and choice of the epoch.

usage: python scripts/spread_census.py data.dir=... [option=value ...] [overrides]

    splits=10          random halvings of the official test file into validation and test rows
    runs=10            seeds on each split, as replicas
    rows=500,5000,all  numbers of validation rows that choose the epoch
    folder=runs/spread_census     run folders; finished ones are used again
    out=docs/results/spread       folder for the table and the results of all runs

The training rows are the same in all splits, so runs with the same seed train alike. All other arguments are
overrides for the trainings of `experiment=census`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from commands import train_once
from options import parse, stop
from report_text import describe_rows, mean_text, table, write_report
from stored_results import store_settings

from mmoe.training.run_folder import read_metrics, read_schema

DEFAULTS = {
    "splits": "10", "runs": "10", "rows": "500,5000,all", "folder": "runs/spread_census",
    "out": "docs/results/spread",
}  # fmt: skip
ALL = "all"


def main() -> None:
    """Train on each split, and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"splits": 2, "runs": 2})
    counts = options["rows"].split(",")
    if ALL not in counts or not all(count.isdigit() and int(count) for count in counts if count != ALL):
        stop(f"rows={options['rows']}: must be numbers of rows and the word all, separated by commas")
    store_settings(Path(options["folder"]) / "settings.json", {"runs": options["runs"]}, overrides)
    lines: list[dict[str, Any]] = []
    for split in range(int(options["splits"])):
        for count in counts:
            run = Path(options["folder"]).absolute() / f"split{split}" / count
            few = [f"data.eval_batch_size={count}", "+trainer.limit_val_batches=1"] if count != ALL else []
            train_once(
                run, "experiment=census", f"data.split_seed={split}", f"replicas={options['runs']}",
                "figures=false", *few, *overrides,
            )  # fmt: skip
            for found in read_metrics(run)["runs"]:
                values = {f"{task}_auroc": value["auroc"] for task, value in found["test"].items()}
                lines.append(
                    {"split": split, "rows": count, "seed": found["seed"], "epoch": found["epoch"]} | values
                )
    report(pd.DataFrame(lines), describe_rows(read_schema(run)), Path(options["out"]))


def components(aurocs: pd.DataFrame) -> dict[str, float]:
    """Standard deviations due to the split, the seed, and the rest, from one value for each split and seed.

    These are the estimates of a two-way analysis of variance with random effects (Searle, Casella and
    McCulloch, Variance Components, 1992, section 4.3); a negative variance counts as 0.
    """
    values = aurocs.to_numpy()
    splits, seeds = values.shape
    by_split, by_seed = values.mean(1), values.mean(0)
    rest = values - by_split[:, None] - by_seed[None, :] + values.mean()
    rest_variance = float((rest**2).sum() / ((splits - 1) * (seeds - 1)))
    variances = {
        "split": by_split.var(ddof=1) - rest_variance / seeds,
        "seed": by_seed.var(ddof=1) - rest_variance / splits,
        "rest": rest_variance,
    }
    return {name: float(np.sqrt(max(variance, 0.0))) for name, variance in variances.items()}


def report(runs: pd.DataFrame, rows: str, out: Path) -> None:
    """Write all runs, and a line for each task and number of validation rows."""
    lines = []
    for task in [name for name in runs if name.endswith("_auroc")]:
        with_all = runs[runs["rows"] == ALL].set_index(["split", "seed"])[task]
        for count, own in runs.groupby("rows", sort=False):
            aurocs = own.pivot(index="split", columns="seed", values=task)
            found = components(aurocs)
            # The seeds of a split share its rows, so the splits are the independent values.
            change = (own.set_index(["split", "seed"])[task] - with_all).groupby("split").mean()
            lines.append([
                str(task).removesuffix("_auroc"), str(count), f"{own[task].mean():.4f}",
                "-" if count == ALL else mean_text(change, "+.5f"),
                *(f"{found[name]:.5f}" for name in ("split", "seed", "rest")),
                f"{own['epoch'].mean():.1f} ± {own['epoch'].std():.1f}",
            ])  # fmt: skip
    header = [
        "task", "validation rows", "mean test AUROC", "minus all rows", "sd: split", "sd: seed", "sd: rest",
        "epoch (mean ± sd)",
    ]  # fmt: skip
    text = [
        "# What makes the census results differ between runs",
        f"{rows} The official test file is split into validation and test rows in"
        f" {runs['split'].nunique()} ways, with {runs['seed'].nunique()} seeds on each. The training rows are"
        " always the same. The columns `sd` separate the standard deviation of the test AUROC: what the split"
        " adds for all seeds alike, what the seed adds on all splits alike, and the rest, which includes the"
        " choice of the epoch by validation rows. `±` in the fourth column is half the 95 % interval of the"
        " mean over splits.",
        table(header, lines),
    ]
    write_report(out, "spread", text, runs)


if __name__ == "__main__":
    main()
