"""Reproduce the paper's census tables (section 6.3): each method is tuned alike and trained with many seeds.

usage: python scripts/reproduce_census.py group=1 data.dir=... [option=value ...]

    group=1|2          main task: income (1) or education, at least college (2); the other: never married
    seeds=20           runs of each method, as replicas
    trials=20          trials in each method's search
    budget=tuned       matched: set each method's width so that it has as many parameters as the tuned mmoe
    methods=all        or some of them, separated by commas
    folder=runs/reproduce_census   studies and run folders; finished ones are used again
    out=docs/results/census        folder for tables, figure and tuned configurations
    sample=false       true: allow the bundled sample, which is synthetic

All other arguments are overrides for the training, such as data.dir. A stopped script continues when it is
started again.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from commands import compose_config, run_command, train_once
from matplotlib.figure import Figure
from options import parse, stop
from tables import describe_rows, table

from mmoe import Schema
from mmoe.intervals import half_interval
from mmoe.run_folder import read_metrics, read_schema
from mmoe.training.preparation import build_network

METHODS = (
    "single_task", "shared_bottom", "l2_constrained", "cross_stitch", "tensor_factorization", "omoe", "mmoe",
    "ple",
)  # fmt: skip
EXPERIMENTS = {"1": "census", "2": "census_education"}
TASKS = {"1": ("income", "marital"), "2": ("education", "marital")}
# Test AUROC in Ma et al., KDD 2018, tables 1 and 2: best and mean of the main task, then never married in the
# best run and its mean.
PUBLISHED = {
    "1": {
        "single_task": (0.9398, 0.9337, 0.9933, 0.9922),
        "shared_bottom": (0.9361, 0.9295, 0.9915, 0.9921),
        "l2_constrained": (0.9389, 0.9359, 0.9922, 0.9918),
        "cross_stitch": (0.9406, 0.9361, 0.9917, 0.9922),
        "tensor_factorization": (0.7460, 0.6765, 0.8175, 0.8412),
        "omoe": (0.9387, 0.9319, 0.9928, 0.9923),
        "mmoe": (0.9410, 0.9359, 0.9926, 0.9927),
    },
    "2": {
        "single_task": (0.8843, 0.8792, 0.9933, 0.9922),
        "shared_bottom": (0.8836, 0.8813, 0.9927, 0.9917),
        "l2_constrained": (0.8855, 0.8823, 0.9923, 0.9918),
        "cross_stitch": (0.8855, 0.8819, 0.9919, 0.9921),
        "tensor_factorization": (0.7367, 0.7256, 0.7453, 0.7497),
        "omoe": (0.8852, 0.8813, 0.9915, 0.9912),
        "mmoe": (0.8860, 0.8826, 0.9932, 0.9924),
    },
}
DEFAULTS = {
    "group": None, "seeds": "20", "trials": "20", "budget": "tuned", "methods": "all",
    "folder": "runs/reproduce_census", "out": "docs/results/census", "sample": "false",
}  # fmt: skip


def main() -> None:
    """Tune and train the methods, and write the tables of one group."""
    choices = {"group": ("1", "2"), "budget": ("tuned", "matched"), "sample": ("true", "false")}
    options, overrides = parse(sys.argv[1:], DEFAULTS, choices, {"seeds": 2, "trials": 1})
    group, experiment = options["group"], EXPERIMENTS[options["group"]]
    methods = METHODS if options["methods"] == "all" else tuple(options["methods"].split(","))
    if not set(methods) <= set(METHODS):
        stop(f"methods={options['methods']}: must be all or some of {', '.join(METHODS)}")
    root = Path(options["folder"]) / f"group{group}"
    overrides = [*overrides, f"data.source={'auto' if options['sample'] == 'true' else 'official'}"]
    found: dict[str, dict[str, Any]] = {}
    methods = ("mmoe", *(method for method in methods if method != "mmoe"))
    for number, method in enumerate(methods, 1):
        print(f"[{number}/{len(methods)}] {method}", flush=True)
        study, run = root / "tune" / method, root / options["budget"] / method
        search = [f"experiment={experiment}", f"model={method}", f"trials={options['trials']}"]
        run_command("tune", *search, f"folder={study}", *overrides)
        tuned = next((study / "experiment").glob("*.yaml"))
        given = [f"experiment={tuned.stem}", f"replicas={options['seeds']}", *overrides]
        if options["budget"] == "matched" and method != "mmoe":
            given.append(matched_width(study, given, found["mmoe"]))
        train_once(run, "--config-dir", str(study), *given)
        found[method] = read_results(run, int(options["seeds"]), found.get("mmoe"))
    found = {method: found[method] for method in METHODS if method in found}
    write_report(found, options)
    configs = Path(options["out"]) / "configs" / "experiment"
    configs.mkdir(parents=True, exist_ok=True)
    for method in found:
        for path in (root / "tune" / method / "experiment").glob("*.yaml"):
            shutil.copy(path, configs)


def matched_width(study: Path, overrides: Sequence[str], mmoe: dict[str, Any]) -> str:
    """The override that sets a method's width so that it has about as many parameters as `mmoe`."""
    given = [f"hydra.searchpath=[{study.absolute()}]", *overrides]
    model = compose_config(*given).model
    key = next(key for key in ("units", "bottom_units", "expert_units") if key in model)

    def num_parameters(width: int) -> int:
        network = build_network(compose_config(*given, f"model.{key}=[{width}]"), mmoe["schema"])
        return sum(p.numel() for p in network.parameters())

    low, high = 1, 2048
    while low < high:  # find the smallest width with at least as many parameters
        middle = (low + high) // 2
        low, high = (low, middle) if num_parameters(middle) >= mmoe["parameters"] else (middle + 1, high)
    nearest = min((low, max(low - 1, 1)), key=lambda w: abs(num_parameters(w) - mmoe["parameters"]))
    return f"model.{key}=[{nearest}]"


def read_results(run: Path, seeds: int, other: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics and schema of a run. Stop unless it has `seeds` replicas and the same rows as `other`."""
    metrics, schema = read_metrics(run), read_schema(run)
    if metrics.get("replicas") != seeds:
        stop(f"{run}: has {metrics.get('replicas')} seeds, not {seeds}; name another folder")
    if other and other["schema"].files != schema.files:
        stop(f"{run}: was trained on other rows; name another folder")
    return metrics | {"schema": schema}


def write_report(found: dict[str, dict[str, Any]], options: dict[str, str]) -> None:
    """Write the results of all runs as CSV, the tables as Markdown, and the figure."""
    out, group = Path(options["out"]), options["group"]
    name = f"group{group}" + ("_matched" if options["budget"] == "matched" else "")
    main_task = TASKS[group][0]
    rows = [
        {"method": method, "seed": run["seed"], "epoch": run["epoch"], "parameters": metrics["parameters"]}
        | {f"{split}_{t}_auroc": run[split][t]["auroc"] for split in ("test", "val") for t in TASKS[group]}
        for method, metrics in found.items()
        for run in metrics["runs"]
    ]
    frame = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / f"{name}.csv", index=False, float_format="%.6f")
    draw_runs(frame, f"test_{main_task}_auroc", f"test AUROC, {main_task}", out / f"{name}.png")
    text = [
        f"# Census task group {group}: {main_task} (main) and never married (auxiliary)",
        describe(found["mmoe"]["schema"], options),
        "## Test AUROC",
        result_table(frame, group),
        "`±` is half the 95 % confidence interval of the mean over seeds (Student's t), and `sd` is the"
        " standard deviation over seeds. As in the paper, the best run is the one with the best test AUROC of"
        " the main task. It is chosen on the test rows, so only the means are a fair comparison. The"
        " published numbers are from Ma et al., who trained 400 times on the official rows.",
        f"## {main_task.capitalize()}: differences of the test AUROC, paired by seed",
        difference_table(frame, f"test_{main_task}_auroc"),
        f"![test AUROC of every run, by method]({name}.png)",
    ]
    (out / f"{name}.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text))


def describe(schema: Schema, options: dict[str, str]) -> str:
    """Sentences about the rows, the search and the training."""
    matched = options["budget"] == "matched"
    width = " Widths are then set so that every method has as many parameters as mmoe." if matched else ""
    return (
        f"{describe_rows(schema)} Each method is tuned in {options['trials']} trials of a Gaussian-process"
        f" search for the best validation AUROC of the main task.{width} It is then trained with"
        f" {options['seeds']} seeds. The validation AUROC also chooses the epoch."
    )


def result_table(frame: pd.DataFrame, group: str) -> str:
    """The paper's table, with the spread over seeds and the published numbers."""
    main_task, other_task = TASKS[group]
    header = (
        "method", f"{main_task}, best run", f"{main_task}, mean", "sd", "never married, best run",
        "never married, mean", "sd", f"published {main_task}, best / mean",
        "published never married, best run / mean", "parameters",
    )  # fmt: skip
    lines = []
    for method, runs in frame.groupby("method", sort=False):
        main, other = runs[f"test_{main_task}_auroc"], runs[f"test_{other_task}_auroc"]
        published = [f"{value:.4f}" for value in PUBLISHED[group].get(str(method), ())] or ["-"] * 4
        lines.append(
            [
                str(method),
                f"{main.max():.4f}",
                f"{main.mean():.4f} ± {half_interval(main):.4f}",
                f"{main.std():.4f}",
                f"{other[main.idxmax()]:.4f}",
                f"{other.mean():.4f} ± {half_interval(other):.4f}",
                f"{other.std():.4f}",
                " / ".join(published[:2]),
                " / ".join(published[2:]),
                f"{runs['parameters'].iloc[0]:,}",
            ]
        )
    return table(header, lines)


def difference_table(frame: pd.DataFrame, column: str) -> str:
    """The mean difference of each method from single_task and from mmoe, paired by seed."""
    areas = frame.pivot(index="seed", columns="method", values=column)
    baselines = [baseline for baseline in ("single_task", "mmoe") if baseline in areas]
    lines = []
    for method in frame["method"].unique():
        cells = []
        for baseline in baselines:
            difference = areas[method] - areas[baseline]
            half = half_interval(difference)
            note = " (not significant)" if abs(difference.mean()) <= half else ""
            cells.append("-" if method == baseline else f"{difference.mean():+.4f} ± {half:.4f}{note}")
        lines.append([method, *cells])
    return table(["method", *(f"minus {baseline}" for baseline in baselines)], lines)


def draw_runs(frame: pd.DataFrame, column: str, label: str, path: Path) -> None:
    """Draw a box for each method, and every run as a point."""
    methods = list(frame["method"].unique())[::-1]
    values = [frame.loc[frame["method"] == method, column].to_numpy() for method in methods]
    figure = Figure(figsize=(7, 0.45 * len(methods) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(
        values, orientation="horizontal", tick_labels=methods, showfliers=False, widths=0.5,
        medianprops={"color": "black"},
    )  # fmt: skip
    jitter = np.random.default_rng(0)
    for i, runs in enumerate(values, 1):
        axes.plot(runs, i + jitter.uniform(-0.15, 0.15, len(runs)), "o", ms=3.5, mfc="none", mec="0.35")
    axes.set_xlabel(f"{label} ({len(values[0])} runs a method; box: quartiles)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
