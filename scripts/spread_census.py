"""Separate what makes the census results differ between runs: split, seed, and choice of the epoch.

usage: python scripts/spread_census.py data.dir=... [option=value ...] [overrides]

    splits=10          random halvings of the official test file into validation and test rows
    runs=10            seeds on each split
    rows=500,5000,all  numbers of validation rows that choose the epoch
    folder=runs/spread_census     run folders; finished ones are used again
    out=docs/results/spread       folder for the table and the results of all runs

The training rows are the same in all splits, so each seed is trained once, without early stopping, and the
checkpoints of all its epochs are kept. Each split then chooses one of them. All other arguments are overrides
for the trainings of `experiment=census`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from commands import train_once
from options import parse, stop
from report_text import describe_rows, mean_text, table, write_report
from stored_results import store_settings
from torch import Tensor

from mmoe.data.split_rules import SplitRule
from mmoe.data.table_splits import choose_all
from mmoe.metrics.areas import areas_of_counts, counts_by_score
from mmoe.run import Run
from mmoe.training import checkpoints

DEFAULTS = {
    "splits": "10", "runs": "10", "rows": "500,5000,all", "folder": "runs/spread_census",
    "out": "docs/results/spread",
}  # fmt: skip
ALL = "all"
HALVES = ("val", "test")
HALVING = SplitRule(fraction=0.5, of="test")  # as in `CensusData`


def main() -> None:
    """Train each seed, choose an epoch on each split, and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"splits": 2, "runs": 2})
    counts = options["rows"].split(",")
    if ALL not in counts or not all(count.isdigit() and int(count) for count in counts if count != ALL):
        stop(f"rows={options['rows']}: must be numbers of rows and the word all, separated by commas")
    folder = Path(options["folder"]).absolute()
    store_settings(folder / "settings.json", {}, overrides)
    lines: list[dict[str, Any]] = []
    for seed in range(int(options["runs"])):
        train_once(
            folder / f"seed{seed}", "experiment=census", f"seed={seed}", "figures=false",
            "+callbacks.best.save_top_k=-1", "~callbacks.early_stopping", *overrides,
        )  # fmt: skip
        run = Run(folder / f"seed{seed}")
        lines += [{"seed": seed} | line for line in results_of(run, int(options["splits"]), counts)]
    runs = pd.DataFrame(lines).sort_values(["split", "seed"], kind="stable")
    report(runs, describe_rows(run.schema), Path(options["out"]))


def results_of(run: Run, splits: int, counts: Sequence[str]) -> list[dict[str, Any]]:
    """The test AUROCs of the epoch that is chosen on each split, by each number of validation rows."""
    logits, labels = test_file_of(run)
    lines: list[dict[str, Any]] = []
    for split in range(splits):
        halves = choose_all({"val": HALVING}, "test", pd.DataFrame(index=range(len(labels))), split, {})
        for count in counts:
            rows = halves["val"]
            if count != ALL and int(count) > len(rows):
                stop(f"rows={count}: there are only {len(rows)} validation rows")
            rows = rows if count == ALL else rows[: int(count)]
            values = [auroc(epoch[rows, 0], labels[rows, 0]) for epoch in logits]  # of the main task
            if np.isnan(values).any():
                stop(f"rows={count}: in split {split}, these validation rows have only one label")
            best, rows = int(np.argmax(values)), halves["test"]
            line: dict[str, Any] = {"split": split, "rows": count, "epoch": best + 1}
            for i, task in enumerate(run.schema.tasks):
                line[f"{task.name}_auroc"] = auroc(logits[best][rows, i], labels[rows, i])
            lines.append(line)
    return lines


def test_file_of(run: Run) -> tuple[list[Tensor], Tensor]:
    """The logits after each epoch, and the labels, of all rows of the test file in its order; each [N, T]."""
    order = torch.cat([run.data.dataset.positions[half] for half in HALVES]).argsort()
    names = [path.stem for path in checkpoints.find(run.folder, "all") if path.stem.startswith("best-")]
    names.sort(key=lambda name: int(re.findall(r"\d+", name)[0]))  # best-epoch0-step195, ...
    logits = [torch.cat([run.outputs(half, name).logits for half in HALVES])[order] for name in names]
    return logits, torch.cat([run.rows(half).labels for half in HALVES])[order]


def auroc(logits: Tensor, labels: Tensor) -> float:
    """The AUROC of logits [N] and labels [N]; nan if all labels are equal."""
    return float(areas_of_counts(*counts_by_score(logits, labels))["auroc"])


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
