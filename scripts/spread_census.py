"""Separate what makes the census results differ between runs: split, seed, and choice of the epoch.

usage: python scripts/spread_census.py data.dir=... [option=value ...] [overrides]

    splits=10          random halvings of the official test file into validation and test rows
    runs=10            seeds
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
from commands import compose_config, train_once
from options import parse, stop
from report_text import describe_rows, mean_text, table, write_report
from stored_results import store_settings
from torch import Tensor

from mmoe.build import build
from mmoe.cli.exits import errors_on_one_line
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


def main() -> None:
    """Train each seed, choose an epoch on each split, and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"splits": 2, "runs": 2})
    counts = options["rows"].split(",")
    if ALL not in counts or not all(count.isdigit() and int(count) for count in counts if count != ALL):
        stop(f"rows={options['rows']}: must be numbers of rows and the word all, separated by commas")
    if len(set(counts)) < len(counts):
        stop(f"rows={options['rows']}: must not repeat a number")
    with errors_on_one_line():
        data = build(compose_config("experiment=census", *overrides), "data")
        available = data.schema.num_rows["val"]
    for count in counts:
        if count != ALL and int(count) > available:
            stop(f"rows={count}: there are only {available} validation rows")
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
    rules, rows = {"val": run.data.validation}, pd.DataFrame(index=range(len(labels)))
    lines: list[dict[str, Any]] = []
    for split in range(splits):
        halves = choose_all(rules, "test", rows, split, {})
        shuffled = np.random.default_rng(split).permutation(halves["val"])
        for count in counts:
            chosen = shuffled if count == ALL else shuffled[: int(count)]
            if len(labels[chosen, 0].unique()) < 2:
                stop(f"rows={count}: in split {split}, these validation rows have only one label")
            values = {  # of the main task, which is the first one
                epoch: auroc(own[chosen, 0], labels[chosen, 0]) for epoch, own in logits.items()
            }
            best = max(values, key=values.__getitem__)
            line: dict[str, Any] = {"split": split, "rows": count, "epoch": best}
            for i, task in enumerate(run.schema.tasks):
                line[f"{task.name}_auroc"] = auroc(logits[best][halves["test"], i], labels[halves["test"], i])
            lines.append(line)
    return lines


def test_file_of(run: Run) -> tuple[dict[int, Tensor], Tensor]:
    """The logits after each epoch (from 1), and the labels, of the test file in its order; [N, T] each."""
    order = torch.cat([run.data.dataset.positions[half] for half in HALVES]).argsort()
    names = [path.stem for path in checkpoints.find(run.folder, "all") if path.stem.startswith("best-")]
    epochs = {int(re.findall(r"\d+", name)[0]) + 1: name for name in names}  # best-epoch0-step780, ...
    logits = {
        epoch: torch.cat([run.outputs(half, epochs[epoch]).logits for half in HALVES])[order]
        for epoch in sorted(epochs)
    }
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
        f"{rows} {runs['seed'].nunique()} seeds are trained once, without early stopping. The official test"
        f" file is halved in {runs['split'].nunique()} ways into validation and test rows, and on each split"
        " an epoch of each seed is chosen, by all validation rows or by a random part of them. The columns"
        " `sd` are standard deviations of the test AUROC: of the effect of the split, which all seeds share;"
        " of the effect of the seed, which all splits share; and of the rest, which includes the choice of"
        " the epoch. `±` in the fourth column is half the 95 % interval of the mean over splits.",
        table(header, lines),
    ]
    write_report(out, "spread", text, runs)


if __name__ == "__main__":
    main()
