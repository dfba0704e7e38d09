"""Train `census_best` without one of its parts at a time.

usage: python scripts/ablate_census_best.py data.dir=... [option=value ...] [overrides]

    splits=0,1,2       seeds of the random halvings of the official test file into validation and test rows
    seeds=0,1,2,3      seeds of the trainings on each split
    folder=runs/ablate_census_best     run folders; finished ones are used again
    out=docs/results/gbdt/ablation     folder for the table and the results of all runs

All other arguments are overrides for the trainings.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from commands import train_once
from options import integers, parse, stop
from report_text import describe_rows, mean_text, table, write_report
from stored_results import store_settings

from mmoe.training.run_folder import read_metrics, read_schema

WHOLE = "census_best"
# What is left out, and the overrides. A run's folder is named after the key of the first override.
PARTS: dict[str, list[str]] = {
    WHOLE: [],
    "scales of columns": ["model.column_scale_rate=0"],
    "target statistics": ["data.level_encoding=auto"],
    "a share of the columns for each unit (instead: all columns)": ["model.column_share=1.0"],
    "expert heads (instead: one tower for each task)": ["model.expert_heads=false"],
    "the factor 0.5 of one-hot levels (instead: 1)": ["inputs.categorical.scale=1.0"],
    "a schedule by step (instead: by epoch)": [
        "learner.interval=epoch",
        "learner.scheduler.T_max=${trainer.max_epochs}",
    ],
}
DEFAULTS = {
    "splits": "0,1,2", "seeds": "0,1,2,3", "folder": "runs/ablate_census_best",
    "out": "docs/results/gbdt/ablation",
}  # fmt: skip


def main() -> None:
    """Train on each split with each seed, and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {})
    splits, seeds = (integers(options, name, 0) for name in ("splits", "seeds"))
    for name, values in (("splits", splits), ("seeds", seeds)):
        if len(set(values)) < len(values):
            stop(f"{name}={options[name]}: must be different integers")
    folder = Path(options["folder"]).absolute()
    store_settings(folder / "settings.json", {}, overrides)
    lines: list[dict[str, Any]] = []
    for seed in seeds:
        for split in splits:
            for part, without in PARTS.items():
                name = without[0].partition("=")[0] if without else WHOLE
                run = folder / f"split{split}-seed{seed}" / name
                given = ["experiment=census_best", f"data.split_seed={split}", f"seed={seed}"]
                train_once(run, *given, "figures=false", "card=false", *overrides, *without)
                metrics = read_metrics(run)
                values = {
                    f"{task}_{stage}_auroc": found["auroc"]
                    for stage in ("val", "test")
                    for task, found in metrics[stage].items()
                }
                lines.append({"without": part, "split": split, "seed": seed} | values)
    report(pd.DataFrame(lines), describe_rows(read_schema(run)), Path(options["out"]))


def report(runs: pd.DataFrame, rows: str, out: Path) -> None:
    """Write all runs, and a line for each part."""
    values = [name for name in runs if name.endswith("_auroc")]
    by_part = {name: runs.pivot(index=["split", "seed"], columns="without", values=name) for name in values}
    lines = []
    for part in PARTS:
        cells = [part if part == WHOLE else f"without {part}"]
        for name in values:
            found = by_part[name]
            change = found[part] - found[WHOLE]
            cells.append(f"{found[part].mean():.4f}" if part == WHOLE else mean_text(change, "+.4f"))
        lines.append(cells)
    header = ["setting", *(name.removesuffix("_auroc").replace("_", ", ") + " AUROC" for name in values)]
    text = [
        "# What each part of `census_best` brings",
        f"{rows} Every line is trained with {runs['seed'].nunique()} seeds on each of"
        f" {runs['split'].nunique()} splits. The first line has mean values. The others have mean differences"
        " from it, paired by split and seed, and `±` is half the 95 % interval.",
        table(header, lines),
    ]
    write_report(out, "ablation", text, runs)


if __name__ == "__main__":
    main()
