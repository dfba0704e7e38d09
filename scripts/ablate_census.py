"""Take the inputs and the training of MMoE back to what the paper may have used, step by step.

usage: python scripts/ablate_census.py data.dir=... [option=value ...] [overrides]

    runs=10            seeds of each step, as replicas
    experiment=census  where the steps start; with --config-dir STUDY, a tuned configuration
    folder=runs/ablate_census     run folders; finished ones are used again
    out=docs/results/ablation     folder for the table and the results of all runs

Each step keeps the changes of the steps before it. The last three steps differ in the optimizer. Each is also
trained with min-max scaling and with unscaled numbers. All other arguments are overrides for the trainings.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from commands import train_once
from options import parse
from report_text import describe_rows, mean_text, table, write_report
from stored_results import store_settings

from mmoe.training.run_folder import read_metrics, read_schema

ADAGRAD = "{_target_: torch.optim.Adagrad, _partial_: true, lr: 0.05}"
SGD = "{_target_: torch.optim.SGD, _partial_: true, lr: 0.05}"
# What changes, and the overrides. The paper leaves its inputs and its optimizer open.
STEPS: list[tuple[str, list[str]]] = [
    ("start", []),
    ("z-scores instead of piecewise-linear numbers", ["inputs=standard"]),
    ("ReLU, as in the paper", ["activation=relu"]),
    ("gates without a temperature, as in the paper", ["model.gate_temperature=1.0"]),
    ("no dropout, if the start has any", ["model.dropout=0.0"]),
    ("a constant learning rate of 0.001", ["learner.scheduler=null", "learner.optimizer.lr=1e-3"]),
    ("the last epoch instead of the best one", ["+trainer.check_val_every_n_epoch=${trainer.max_epochs}"]),
    ("Adagrad with learning rate 0.05, TensorFlow's default of 2017", [f"learner.optimizer={ADAGRAD}"]),
    ("plain SGD with learning rate 0.05", [f"learner.optimizer={SGD}"]),
]
OPTIMIZERS = ("Adam, 0.001", "Adagrad, 0.05", "SGD, 0.05")  # the optimizers of the last three steps
SCALINGS = {"0 to 1": "min_max", "unscaled": "unscaled"}  # other scalings than z-scores, and their `inputs`
DEFAULTS = {
    "runs": "10", "experiment": "census", "folder": "runs/ablate_census", "out": "docs/results/ablation",
}  # fmt: skip


def main() -> None:
    """Train each step, and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"runs": 2})
    settings = {key: options[key] for key in ("runs", "experiment")}
    store_settings(Path(options["folder"]) / "settings.json", settings, overrides)
    lines: list[dict[str, Any]] = []
    for number, (columns, changes) in enumerate(trainings()):
        run = Path(options["folder"]).absolute() / str(number)
        train_once(
            run, f"experiment={options['experiment']}", f"replicas={options['runs']}", "figures=false",
            *overrides, *changes,
        )  # fmt: skip
        for found in read_metrics(run)["runs"]:
            values = {f"{task}_auroc": value["auroc"] for task, value in found["test"].items()}
            lines.append(columns | {"seed": found["seed"], "epoch": found["epoch"]} | values)
    report(pd.DataFrame(lines), describe_rows(read_schema(run)), Path(options["out"]))


def trainings() -> list[tuple[dict[str, str], list[str]]]:
    """The columns of each training in the table of all runs, and its overrides.

    A training has a `step` if it is one of STEPS, and `numbers` and `optimizer` if it is in the table of
    scalings. The other columns are empty.
    """
    found: list[tuple[dict[str, str], list[str]]] = []
    changes: list[str] = []
    for step, own in STEPS:
        changes = with_overrides(changes, own)
        found.append(({"step": step, "numbers": "", "optimizer": ""}, changes))
    last = list(zip(OPTIMIZERS, found[-len(OPTIMIZERS) :], strict=True))
    for optimizer, (columns, _) in last:
        columns.update(numbers="z-scores", optimizer=optimizer)
    for scaling, inputs in SCALINGS.items():
        for optimizer, (_, changes) in last:
            columns = {"step": "", "numbers": scaling, "optimizer": optimizer}
            found.append((columns, with_overrides(changes, [f"inputs={inputs}"])))
    return found


def with_overrides(overrides: Sequence[str], added: Sequence[str]) -> list[str]:
    """Add overrides. They replace earlier ones of the same keys, and of the keys below these."""
    keys = [one.partition("=")[0] for one in added]
    replaced = tuple(f"{key}{end}" for key in keys for end in "=.")
    return [*(one for one in overrides if not one.startswith(replaced)), *added]


def report(runs: pd.DataFrame, rows: str, out: Path) -> None:
    """Write all runs, a table of the steps, and a table of the scalings."""
    tasks = [name for name in runs if name.endswith("_auroc")]
    of_steps = runs[runs["step"] != ""]
    values = {task: of_steps.pivot(index="seed", columns="step", values=task) for task in tasks}
    lines = []
    steps = [step for step, _ in STEPS]
    for before, step in zip([steps[0], *steps], steps, strict=False):
        cells = [step]
        for task in tasks:
            change = values[task][step] - values[task][before]
            gain = "-" if step == steps[0] else mean_text(change, "+.4f")
            cells += [f"{values[task][step].mean():.4f}", gain]
        lines.append(cells)
    header = ["step"]
    for task in tasks:
        header += [f"{task.removesuffix('_auroc')}: test AUROC", "change"]
    text = [
        "# From our training back to the paper's",
        f"{rows} Each line keeps the changes of the lines above it. The numbers are means over"
        f" {runs['seed'].nunique()} seeds. A change is the difference from the line above, paired by seed,"
        " and `±` is half its 95 % interval.",
        table(header, lines),
        "## How numbers are scaled",
        "The last three steps, with z-scores and with numbers that are scaled in other ways. `±` is half the"
        " 95 % interval of the mean, and `sd` is the standard deviation over seeds.",
        scaling_table(runs, tasks),
    ]
    write_report(out, "ablation", text, runs)


def scaling_table(runs: pd.DataFrame, tasks: Sequence[str]) -> str:
    """The test AUROC of each task, by scaling and optimizer."""
    header = ["numbers", "optimizer, learning rate"]
    for task in tasks:
        header += [f"{task.removesuffix('_auroc')}: test AUROC", "sd"]
    lines = []
    for names, own in runs[runs["numbers"] != ""].groupby(["numbers", "optimizer"], sort=False):
        line = [*names]
        for task in tasks:
            line += [mean_text(own[task]), f"{own[task].std():.4f}"]
        lines.append(line)
    return table(header, lines)


if __name__ == "__main__":
    main()
