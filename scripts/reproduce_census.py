"""The paper's census tables (section 6.3): every method, tuned alike, over many seeds.

usage: python scripts/reproduce_census.py group=1 data.dir=... [option=value ...]

    group=1|2          income or at least college, each with never married
    seeds=20           runs of each method, as replicas
    trials=20          of each method's search
    budget=tuned       matched: each method's width is set to have as many parameters as the tuned mmoe
    methods=all        or some of them, separated by commas
    folder=runs/reproduce_census   journals and run folders; what is there is not done again
    out=docs/results/census        tables, figure, tuned configurations
    sample=false       true: allow the bundled sample, whose numbers mean nothing

Anything else is an override for the training, such as data.dir. It can be stopped at any time, and goes on.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from options import call, parse, stop
from tables import describe_rows, table

from mmoe import CONF_DIR, Schema
from mmoe.build import build_network
from mmoe.intervals import half_interval

METHODS = (
    "single_task", "shared_bottom", "l2_constrained", "cross_stitch", "tensor_factorization", "omoe", "mmoe",
    "ple",
)  # fmt: skip
EXPERIMENTS = {"1": "census", "2": "census_education"}
TASKS = {"1": ("income", "marital"), "2": ("education", "marital")}
# Ma et al., KDD 2018, tables 1 and 2: main task best and mean, never married at the best run and mean.
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
    """Tune, train, and write the tables of one group."""
    choices = {"group": ("1", "2"), "budget": ("tuned", "matched")}
    options, overrides = parse(sys.argv[1:], DEFAULTS, choices, {"seeds": 2, "trials": 1})
    group, experiment = options["group"], EXPERIMENTS[options["group"]]
    methods = METHODS if options["methods"] == "all" else tuple(options["methods"].split(","))
    if not set(methods) <= set(METHODS):
        stop(f"methods={options['methods']}: must be all or some of {', '.join(METHODS)}")
    root = Path(options["folder"]) / f"group{group}"
    overrides = [*overrides, f"data.source={'auto' if options['sample'] == 'true' else 'official'}"]
    found: dict[str, dict[str, Any]] = {}
    for number, method in enumerate(("mmoe", *(m for m in methods if m != "mmoe")), 1):
        print(f"[{number}/{len({*methods, 'mmoe'})}] {method}", flush=True)
        search = [f"experiment={experiment}", f"model={method}", f"trials={options['trials']}"]
        call("tune", *search, f"folder={root}/tune/{method}", *overrides)
        run = root / options["budget"] / method
        if not (run / "metrics.json").exists():
            shutil.rmtree(run, ignore_errors=True)  # it was stopped before its end
            tuned = next((root / "tune" / method / "experiment").glob("*.yaml"))
            given = [f"experiment={tuned.stem}", f"replicas={options['seeds']}", "logger=none", *overrides]
            if options["budget"] == "matched" and method != "mmoe":
                given.append(matched(root / "tune" / method, given, found["mmoe"]))
            folder = ["--config-dir", str(root / "tune" / method)]
            call("train", *folder, *given, f"hydra.run.dir={run}")
        found[method] = read(run, int(options["seeds"]), found.get("mmoe"))
    write({method: found[method] for method in METHODS if method in found}, options, root)


def matched(folder: Path, overrides: Sequence[str], mmoe: dict[str, Any]) -> str:
    """The override of the method's width that brings its parameters closest to those of `mmoe`."""
    schema: Schema = mmoe["schema"]
    given = [f"hydra.searchpath=[{folder.absolute()}]", *overrides]

    def parameters(width: int) -> int:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose("train", overrides=[*given, f"model.{key}=[{width}]"])
        return sum(p.numel() for p in build_network(config, schema).parameters())

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        model = compose("train", overrides=given).model
    key = next(k for k in ("units", "bottom_units", "expert_units") if k in model)
    low, high = 1, 2048
    while low < high:  # the narrowest that has at least as many
        middle = (low + high) // 2
        low, high = (low, middle) if parameters(middle) >= mmoe["parameters"] else (middle + 1, high)
    width = min((low, max(low - 1, 1)), key=lambda w: abs(parameters(w) - mmoe["parameters"]))
    return f"model.{key}=[{width}]"


def read(run: Path, seeds: int, other: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics and schema of a run folder of `seeds` replicas, of the same rows as `other`."""
    metrics = json.loads((run / "metrics.json").read_text())
    schema = Schema.from_json((run / "schema.json").read_text())
    if metrics.get("replicas") != seeds:
        stop(f"{run}: has {metrics.get('replicas')} seeds, not {seeds}; name another folder")
    if other and other["schema"].files != schema.files:
        stop(f"{run}: is of other rows; name another folder")
    return metrics | {"schema": schema}


def write(found: dict[str, dict[str, Any]], options: dict[str, str], root: Path) -> None:
    """Tables as Markdown and CSV, the figure, and the tuned configurations."""
    out, group = Path(options["out"]), options["group"]
    name = f"group{group}" + ("_matched" if options["budget"] == "matched" else "")
    main_task, other_task = TASKS[group]
    rows = [
        {"method": method, "seed": run["seed"], "epoch": run["epoch"], "parameters": metrics["parameters"]}
        | {f"{split}_{t}_auroc": run[split][t]["auroc"] for split in ("test", "val") for t in TASKS[group]}
        for method, metrics in found.items()
        for run in metrics["runs"]
    ]
    frame = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / f"{name}.csv", index=False, float_format="%.6f")
    figure(frame, f"test_{main_task}_auroc", f"test AUROC, {main_task}", out / f"{name}.png")
    schema = found["mmoe"]["schema"]
    text = [
        f"# Census task group {group}: {main_task} (main) and never married (auxiliary)",
        "",
        describe(schema, options),
        "",
        "## Test AUROC",
        "",
        *results(found, frame, group, main_task, other_task),
        "",
        "`±` is half the 95 % confidence interval of the mean over seeds (Student's t), `sd` the standard",
        "deviation over seeds. `best` is the run with the best test AUROC of the main task, as in the paper:",
        "it is chosen on the test rows, so only the means are fair. Published numbers are Ma et al.'s, of",
        "400 runs on the official rows.",
        "",
        f"## {main_task.capitalize()}: paired differences of the test AUROC, run by run",
        "",
        *differences(frame, f"test_{main_task}_auroc"),
        "",
        f"![distribution of the runs]({name}.png)",
        "",
    ]
    (out / f"{name}.md").write_text("\n".join(text))
    configs = out / "configs" / "experiment"
    configs.mkdir(parents=True, exist_ok=True)
    for method in found:
        for path in (root / "tune" / method / "experiment").glob("*.yaml"):
            shutil.copy(path, configs)
    print((out / f"{name}.md").read_text())


def describe(schema: Schema, options: dict[str, str]) -> str:
    """What was done, on which rows."""
    budget = "tuned" if options["budget"] == "tuned" else "set to mmoe's number of parameters"
    return (
        f"{describe_rows(schema)} Each method: {options['trials']} trials of a Gaussian-process search for"
        " the best validation AUROC of the main task, then"
        f" {options['seeds']} seeds; widths {budget}. The epoch is chosen by validation."
    )


def results(
    found: dict[str, dict[str, Any]], frame: pd.DataFrame, group: str, main_task: str, other_task: str
) -> list[str]:
    """The paper's table, with spread and the published numbers beside ours."""
    header = (
        "method", f"{main_task} best", f"{main_task} mean", "sd", "never married at best",
        "never married mean", "sd", "published best / mean", "published never married at best / mean",
        "parameters",
    )  # fmt: skip
    lines = []
    for method, metrics in found.items():
        runs = frame[frame["method"] == method]
        main, other = runs[f"test_{main_task}_auroc"], runs[f"test_{other_task}_auroc"]
        published = [f"{value:.4f}" for value in PUBLISHED[group].get(method, ())] or ["-"] * 4
        lines.append(
            [
                method,
                f"{main.max():.4f}",
                f"{main.mean():.4f} ± {half_interval(main):.4f}",
                f"{main.std():.4f}",
                f"{other[main.idxmax()]:.4f}",
                f"{other.mean():.4f} ± {half_interval(other):.4f}",
                f"{other.std():.4f}",
                " / ".join(published[:2]),
                " / ".join(published[2:]),
                f"{metrics['parameters']:,}",
            ]
        )
    return table(header, lines)


def differences(frame: pd.DataFrame, column: str) -> list[str]:
    """Each method against single_task and mmoe, seed by seed."""
    areas = frame.pivot(index="seed", columns="method", values=column)
    baselines = [b for b in ("single_task", "mmoe") if b in areas]
    lines = []
    for method in frame["method"].unique():
        cells = []
        for baseline in baselines:
            difference = areas[method] - areas[baseline]
            half = half_interval(difference)
            noise = " (inside the noise)" if abs(difference.mean()) <= half else ""
            cells.append("-" if method == baseline else f"{difference.mean():+.4f} ± {half:.4f}{noise}")
        lines.append([method, *cells])
    return table(["method", *(f"minus {b}" for b in baselines)], lines)


def figure(frame: pd.DataFrame, column: str, label: str, path: Path) -> None:
    """Every run as a point beside the box of its method."""
    methods = list(frame["method"].unique())[::-1]
    values = [frame.loc[frame["method"] == method, column].to_numpy() for method in methods]
    fig, axes = plt.subplots(figsize=(7, 0.45 * len(methods) + 1.2), layout="constrained")
    axes.boxplot(
        values, orientation="horizontal", tick_labels=methods, showfliers=False, widths=0.5,
        medianprops={"color": "black"},
    )  # fmt: skip
    spread = np.random.default_rng(0)
    for i, runs in enumerate(values, 1):
        axes.plot(runs, i + spread.uniform(-0.15, 0.15, len(runs)), "o", ms=3.5, mfc="none", mec="0.35")
    axes.set_xlabel(f"{label} ({len(values[0])} runs a method; box: quartiles)")
    axes.grid(axis="x", alpha=0.3)
    fig.savefig(path, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    main()
