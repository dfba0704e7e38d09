"""Train the experiments of README's table "Results", and write the table beside published numbers.

usage: python scripts/results.py data.dir=... [option=value ...]

    replicas=16                  runs of each experiment; `census_paddlerec` has one
    experiments=census,...       some of the names in EXPERIMENTS; by default all of them
    folder=runs/results          run folders; finished ones are used again
    out=docs/results/official    folder for the table, every run as CSV, and the figure
    sample=false                 true: allow the bundled sample, which is synthetic

All other arguments are overrides for the trainings. A stopped script continues when it is started again.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from commands import run_command, train_once
from matplotlib.figure import Figure
from options import parse, some_of
from report_text import describe_rows, table, write_report
from stored_results import store_settings

from mmoe.analysis.drawing import COLOURS, LINES
from mmoe.intervals import half_interval
from mmoe.training.run_folder import read_metrics, read_schema

# The overrides of each experiment.
EXPERIMENTS = {
    "census": ["experiment=census"],
    "census_paper": ["experiment=census_paper"],
    "census_features_paddlerec": ["experiment=census", "features=paddlerec"],
    "census_best": ["experiment=census_best"],
    "census_paddlerec": ["experiment=census_paddlerec"],
    "census_education": ["experiment=census_education"],
}
ONE_RUN = "census_paddlerec"  # one run of 100 epochs, with a checkpoint after each


class Published(NamedTuple):
    """AUROCs that others publish on the same rows, as they print them."""

    source: str
    main_task: str
    income: str
    education: str
    marital: str
    differs: str


PUBLISHED = (
    Published(
        "Ma et al. (KDD 2018), MMoE, mean of 400 runs", "income", "0.9359", "-", "0.9927",
        "tuned learning rate, steps and widths; the encoding of the columns is not described",
    ),
    Published(
        "Ma et al., MMoE, group 2, mean of 400 runs", "education", "-", "0.8826", "0.9924",
        "the same",
    ),
    Published(
        "PLE's paper (RecSys 2020), MMoE", "income", "0.9393", "-", "0.9928",
        "tuned; number of runs and input columns are not given",
    ),
    Published("PLE's paper, PLE", "income", "0.9522", "-", "0.9945", "the same"),
    Published(
        "PaddleRec, best / mean over runs", "income", "0.949 / 0.944", "-", "0.994",
        "499 inputs with education and instance_weight; 100 epochs of batches of 32; no validation rows",
    ),
    Published(
        "morningsky/multi_task_learning, single runs of three methods", "income", "0.9463-0.9480", "-",
        "0.9937-0.9947", "education is an input",
    ),
)  # fmt: skip
PADDLEREC = {"income": 0.949, "marital": 0.99324}  # PaddleRec's README
DEFAULTS = {
    "replicas": "16", "experiments": ",".join(EXPERIMENTS),
    "folder": "runs/results", "out": "docs/results/official",
    "sample": "false",
}  # fmt: skip


def main() -> None:
    """Train what is missing, and write the results."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {"sample": ("true", "false")}, {"replicas": 2})
    names = some_of(options, "experiments", EXPERIMENTS)
    root, out = Path(options["folder"]), Path(options["out"])
    settings = {key: options[key] for key in ("replicas", "sample")}
    store_settings(root / "settings.json", settings, overrides)
    overrides.append(f"data.source={'auto' if options['sample'] == 'true' else 'official'}")
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        replicas = "1" if name == ONE_RUN else options["replicas"]
        train_once(root / name, *EXPERIMENTS[name], f"replicas={replicas}", "figures=false", *overrides)
    runs = pd.DataFrame([line for name in names for line in read_runs(root / name, name)])
    text = [
        "# Results on the census rows",
        f"{describe_rows(read_schema(root / names[0]))} The best epoch has the highest validation AUROC of"
        " the main task. The table has test AUROCs: means over seeds on one split, ± half the 95 % confidence"
        " interval of the mean (Student's t).",
        result_table(runs),
        "## What others publish on the same rows",
        published_table(),
    ]
    if ONE_RUN in names:
        epochs = evaluate_epochs(root / ONE_RUN)
        out.mkdir(parents=True, exist_ok=True)
        draw_epochs(epochs, out / "paddlerec.png")
        text += [
            "## PaddleRec's setting, epoch by epoch",
            describe_epochs(epochs),
            "![test AUROC by epoch](paddlerec.png)",
        ]
    write_report(out, "results", text, runs)


def read_runs(folder: Path, name: str) -> list[dict[str, Any]]:
    """One line for each seed of a run."""
    metrics = read_metrics(folder)
    lines = []
    for run in metrics.get("runs", [metrics]):
        line = {"run": name, "seed": run["seed"], "epoch": run["epoch"], "parameters": metrics["parameters"]}
        lines.append(line | {task: values["auroc"] for task, values in run["test"].items()})
    return lines


def result_table(runs: pd.DataFrame) -> str:
    """The mean AUROC of each experiment and task."""
    tasks = [task for task in ("income", "education", "marital") if task in runs]
    lines = []
    for name, group in runs.groupby("run", sort=False):
        cells = []
        for task in tasks:
            values = group[task].dropna()
            half = f" ± {half_interval(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.4f}{half}" if len(values) else "-")
        lines.append(
            [
                f"`{' '.join(EXPERIMENTS[str(name)])}`",
                *cells,
                str(len(group)),
                f"{group['parameters'].iloc[0]:,}",
            ]
        )
    return table(["command", *tasks, "runs", "parameters"], lines)


def published_table() -> str:
    """What others publish, and how it differs from our protocol."""
    header = ["source", "main task", "income", "education", "marital", "what differs"]
    return table(header, PUBLISHED)


def evaluate_epochs(folder: Path) -> pd.DataFrame:
    """The test AUROC of each task after every epoch, from the checkpoints of the run."""
    out = folder / "evaluation_test_all.json"
    if not out.is_file():
        run_command("evaluate", f"run={folder}", "checkpoint=all", "split=test", "resamples=0")
    lines = [
        {"epoch": line["epoch"]} | {task: values["auroc"] for task, values in line["metrics"].items()}
        for line in json.loads(out.read_text())["checkpoints"]
        if line["checkpoint"].startswith("epoch_")
    ]
    return pd.DataFrame(lines).sort_values("epoch")


def describe_epochs(epochs: pd.DataFrame) -> str:
    """Sentences about the highest and the last test AUROC of each task."""
    best = {task: epochs.loc[epochs[task].idxmax()] for task in PADDLEREC}
    last = epochs.iloc[-1]
    highest = " and ".join(
        f"{row[task]:.4f} ({task}, epoch {row['epoch']:.0f})" for task, row in best.items()
    )
    ended = " and ".join(f"{last[task]:.4f} ({task})" for task in PADDLEREC)
    return f"The highest test AUROCs are {highest}. After epoch {last['epoch']:.0f} they are {ended}."


def draw_epochs(epochs: pd.DataFrame, path: Path) -> None:
    """Draw the test AUROC by epoch, and PaddleRec's number as a dotted line."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (i, (task, published)) in zip(
        figure.subplots(1, len(PADDLEREC)), enumerate(PADDLEREC.items()), strict=True
    ):
        axes.plot(epochs["epoch"], epochs[task], LINES[i], color=COLOURS[i], label="mmoe")
        axes.axhline(published, linestyle=":", color="black", label=f"PaddleRec's README: {published}")
        axes.set(title=task, xlabel="epoch", ylabel="test AUROC")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
