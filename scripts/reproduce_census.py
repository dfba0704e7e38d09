"""Reproduce the paper's census tables (section 6.3): each method is tuned alike and trained with many seeds.

usage: python scripts/reproduce_census.py group=1 data.dir=... [option=value ...]

    group=1|2          main task: income (1) or education, at least college (2); the other: never married
    seeds=20           runs of each method, a multiple of chunk; if you raise it, runs are added
    chunk=1            runs that are trained at once, as replicas; one by one, wide networks train faster
    trials=30          trials in each method's search; 0: no search, each method has the widths of conf/model/
    budget=tuned       matched: set each method's width, and the rank of tensor_factorization in proportion,
                       for about as many parameters as the tuned mmoe has
    methods=paper      the paper's methods and PLE; all: the descendants of MMoE too; or names: mmoe,ple
    folder=runs/reproduce_census   studies and run folders; finished ones are used again
    out=docs/results/census        folder for the tables, the figure, the results of all runs and the tuned
                                   configurations; methods tuned there and runs with results there are
                                   used again
    sample=false       true: allow the bundled sample, which is synthetic

All other arguments are overrides for the training, such as data.dir. A stopped script continues when it is
started again. Several processes may share the folders if each has other methods, even with another budget.
The tables have all methods with results.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from commands import allow_existing_keys, compose_config, run_command, train_once
from filelock import FileLock
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from options import parse, some_of, stop
from report_text import describe_rows, mean_text, table
from stored_results import check_settings, store_settings, without_machine_overrides

from mmoe import Schema
from mmoe.atomic import write_text
from mmoe.build import build
from mmoe.errors import UserError
from mmoe.intervals import half_interval
from mmoe.training.preparation import build_network
from mmoe.training.run_folder import read_metrics

PAPER = (
    "single_task", "shared_bottom", "l2_constrained", "cross_stitch", "tensor_factorization", "omoe", "mmoe",
    "ple",
)  # fmt: skip
METHODS = (*PAPER, "dselect_k", "adatt", "stem", "aitm")
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
    "group": None, "seeds": "20", "chunk": "1", "trials": "30", "budget": "tuned", "methods": "paper",
    "folder": "runs/reproduce_census", "out": "docs/results/census", "sample": "false",
}  # fmt: skip


def main() -> None:
    """Tune and train the methods, and write the tables of one group after each training."""
    choices = {"group": ("1", "2"), "budget": ("tuned", "matched"), "sample": ("true", "false")}
    minimums = {"seeds": 2, "chunk": 1, "trials": 0}
    options, overrides = parse(sys.argv[1:], DEFAULTS, choices, minimums)
    if int(options["seeds"]) % int(options["chunk"]):
        stop(f"seeds={options['seeds']}: must be a multiple of chunk={options['chunk']}")
    if options["trials"] == "0" and options["budget"] == "matched":
        stop("budget=matched: sets the widths of tuned methods, so trials must not be 0")
    method_sets = {"paper": list(PAPER), "all": list(METHODS)}
    methods = method_sets.get(options["methods"]) or some_of(options, "methods", METHODS)
    group, is_matched = options["group"], options["budget"] == "matched"
    root, out = Path(options["folder"]) / f"group{group}", Path(options["out"])
    source = f"data.source={'auto' if options['sample'] == 'true' else 'official'}"
    given_overrides = without_machine_overrides(overrides)
    overrides = [f"experiment={EXPERIMENTS[group]}", *overrides, source]
    config = compose_config(*overrides)  # a mistake in an override stops here
    settings = {key: options[key] for key in ("trials", "chunk", "sample")}
    kept_settings = out / f"group{group}_settings.json"
    kept = [out / f"group{group}.csv", out / f"group{group}_matched.csv"]
    kept += [tuned_file(out, group, method) for method in METHODS]
    check_settings(kept_settings, settings, overrides, kept)  # stops before anything is written
    for path in (root / "settings.json", kept_settings):
        store_settings(path, settings, overrides)
    for method in [*(["mmoe"] if is_matched and "mmoe" not in methods else []), *methods]:
        tune(root, out, method, options, overrides)
    try:
        schema: Schema = build(config, "data").schema
    except UserError as error:
        stop(str(error))
    store_settings(kept_settings, settings | {"files": dict(schema.files)}, overrides)
    chunk = int(options["chunk"])
    results = out / (f"group{group}_matched.csv" if is_matched else f"group{group}.csv")
    for first in range(0, int(options["seeds"]), chunk):
        for method in methods:
            if not set(range(first, first + chunk)) <= set(seeds_of(read_runs(results), method)):
                print(f"{method}: {chunk} run{'s' if chunk > 1 else ''} from seed {first}", flush=True)
                study = root / "tune" / method
                given = [f"experiment={tuned_experiment(study).stem}", *allow_existing_keys(overrides[1:])]
                given += [f"seed={first}", f"replicas={chunk}", "figures=false"]
                budget = "tuned" if method == "mmoe" else options["budget"]  # the others are matched to mmoe
                if budget == "matched":
                    given += matched_sizes(root, study, given)
                run = root / budget / method / f"seed{first}"
                train_once(run, "--config-dir", str(study), *given)
                with FileLock(root / "results.lock"):  # other processes add runs of other methods
                    add_runs(results, method, run, TASKS[group])
            write_report(results, schema, options, given_overrides)


def tune(root: Path, out: Path, method: str, options: dict[str, str], overrides: Sequence[str]) -> None:
    """Search a method's hyper-parameters in the paper's space, unless a search has ended.

    The tuned configuration is kept in `out` too. Without trials, the configuration only selects the method.
    """
    study = root / "tune" / method
    kept = tuned_file(out, options["group"], method)
    if options["trials"] == "0":
        defaults = f"[{EXPERIMENTS[options['group']]}, override /model: {method}]"
        write_text(study / "experiment" / kept.name, f"# @package _global_\ndefaults: {defaults}\n")
        return
    if kept.exists():
        write_text(study / "experiment" / kept.name, kept.read_text())
    elif not (study / "ended").exists():
        search = [f"model={method}", f"trials={options['trials']}", "space=paper", "prune=0.25"]
        run_command("tune", *overrides, *search, f"folder={study}")
        (study / "ended").touch()
    write_text(kept, tuned_experiment(study).read_text())


def tuned_file(out: Path, group: str, method: str) -> Path:
    """Where the tuned configuration of a method is kept."""
    return out / "configs" / "experiment" / f"tuned_{EXPERIMENTS[group]}_{method}.yaml"


def tuned_experiment(study: Path) -> Path:
    """The configuration of the best trial, or without trials the one that only selects the method."""
    return next((study / "experiment").glob("*.yaml"))


def matched_sizes(root: Path, study: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides that give a method about as many parameters as the tuned mmoe.

    They set its width and, in proportion, its rank if it has one. At a low rank, a network has few parameters
    even if it is very wide.
    """

    def config_of(folder: Path, *given: str) -> DictConfig:
        search = f"hydra.searchpath=[{folder.absolute()}]"
        return compose_config(
            search, f"experiment={tuned_experiment(folder).stem}", *allow_existing_keys(overrides[1:]), *given
        )

    def num_parameters(config: DictConfig) -> int:
        return sum(p.numel() for p in build_network(config, schema).parameters())

    def sizes(width: int) -> list[str]:
        rank = [f"model.rank={math.ceil(model.rank * width / model[key][0])}"] if "rank" in model else []
        return [f"model.{key}=[{width}]", *rank]

    mmoe = config_of(root / "tune" / "mmoe")
    schema = build(mmoe, "data").schema
    wanted = num_parameters(mmoe)
    model = OmegaConf.load(tuned_experiment(study)).model
    key = next(key for key in ("units", "bottom_units", "expert_units") if key in model)
    low, high = 1, 4096
    while low < high:  # find the smallest width with at least as many parameters
        middle = (low + high) // 2
        is_wide = num_parameters(config_of(study, *sizes(middle))) >= wanted
        low, high = (low, middle) if is_wide else (middle + 1, high)
    found = {
        width: abs(num_parameters(config_of(study, *sizes(width))) - wanted)
        for width in (max(low - 1, 1), low)
    }
    return sizes(min(found, key=lambda width: found[width]))


def read_runs(results: Path) -> pd.DataFrame:
    """The results of all finished runs, one line each: an empty table if there is no file yet."""
    return pd.read_csv(results) if results.exists() else pd.DataFrame(columns=["method", "seed"])


def seeds_of(runs: pd.DataFrame, method: str) -> pd.Series:
    """The seeds of the finished runs of a method."""
    return runs.loc[runs["method"] == method, "seed"]


def add_runs(results: Path, method: str, run: Path, tasks: Sequence[str]) -> None:
    """Add the results of a run folder, which has one run or replicas, to the file of all results."""
    metrics = read_metrics(run)
    found_runs = metrics.get("runs", [metrics])
    lines = []
    for found in found_runs:
        line = {"method": method, "seed": found["seed"], "epoch": found["epoch"]}
        line |= {"parameters": metrics["parameters"], "seconds": metrics["seconds"] / len(found_runs)}
        for split in ("test", "val"):
            line |= {f"{split}_{task}_auroc": found[split][task]["auroc"] for task in tasks}
        lines.append(line)
    before = read_runs(results)
    runs = pd.concat([before, pd.DataFrame(lines)]) if len(before) else pd.DataFrame(lines)
    runs["order"] = runs["method"].map(METHODS.index)
    runs = runs.sort_values(["order", "seed"]).drop(columns="order").drop_duplicates(["method", "seed"])
    write_text(results, runs.to_csv(index=False, float_format="%.6f"))


def write_report(results: Path, schema: Schema, options: dict[str, str], overrides: Sequence[str]) -> None:
    """Write the tables as Markdown, and the figure, beside the results of all runs."""
    frame, group = read_runs(results), options["group"]
    main_task = TASKS[group][0]
    draw_runs(frame, f"test_{main_task}_auroc", f"test AUROC, {main_task}", results.with_suffix(".png"))
    text = [
        f"# Census task group {group}: {main_task} (main) and never married (auxiliary)",
        describe(schema, options, overrides),
        "## Test AUROC",
        result_table(frame, group),
        "`±` is half the 95 % confidence interval of the mean over runs (Student's t), and `sd` is the"
        " standard deviation over runs. As in the paper, the best run is the one with the best test AUROC of"
        " the main task. It is chosen on the test rows, so only the means are a fair comparison. The"
        " published numbers are from Ma et al., who trained 400 times. The seconds are"
        f" medians for {seconds_text(int(options['chunk']))}."
        " They are longer where other programs ran at the same time.",
        f"## {main_task.capitalize()}: differences of the test AUROC, paired by seed",
        difference_table(frame, f"test_{main_task}_auroc"),
        f"![test AUROC of every run, by method]({results.stem}.png)",
    ]
    results.with_suffix(".md").write_text("\n\n".join(text) + "\n")


def describe(schema: Schema, options: dict[str, str], overrides: Sequence[str]) -> str:
    """Sentences about the rows, the search and the training."""
    text = describe_rows(schema)
    if options["trials"] == "0":
        text += (
            " The methods are not tuned: they have the widths of conf/model/, and are trained with several"
            " seeds. The validation AUROC chooses the epoch."
        )
    else:
        text += (
            f" Each method is tuned in {options['trials']} trials of a Gaussian-process search for the best"
            " validation AUROC of the main task; the ranges are in conf/space/paper.yaml."
        )
        if options["budget"] == "matched":
            text += (
                " Widths, and the rank of tensor_factorization in proportion, are then set so that every"
                " method has about as many parameters as mmoe."
            )
        text += " It is then trained with several seeds. The validation AUROC also chooses the epoch."
    if overrides:
        text += f" Overrides of all trainings: {', '.join(f'`{one}`' for one in overrides)}."
    return text


def seconds_text(chunk: int) -> str:
    """What the seconds of the table are measured for."""
    return "a whole run" if chunk == 1 else f"{chunk} runs trained at once, divided by {chunk}"


def result_table(frame: pd.DataFrame, group: str) -> str:
    """The paper's table, with the spread over seeds and the published numbers."""
    main_task, other_task = TASKS[group]
    header = (
        "method", "runs", f"{main_task}, best run", f"{main_task}, mean", "sd", "never married, best run",
        "never married, mean", "sd", f"published {main_task}, best / mean",
        "published never married, best run / mean", "parameters", "seconds",
    )  # fmt: skip
    lines = []
    for method, runs in frame.groupby("method", sort=False):
        main, other = runs[f"test_{main_task}_auroc"], runs[f"test_{other_task}_auroc"]
        published = [f"{value:.4f}" for value in PUBLISHED[group].get(str(method), ())] or ["-"] * 4
        lines.append(
            [
                str(method),
                str(len(runs)),
                f"{main.max():.4f}",
                mean_text(main),
                f"{main.std():.4f}",
                f"{other[main.idxmax()]:.4f}",
                mean_text(other),
                f"{other.std():.4f}",
                " / ".join(published[:2]),
                " / ".join(published[2:]),
                f"{runs['parameters'].iloc[0]:,}",
                f"{runs['seconds'].median():.0f}",
            ]
        )
    return table(header, lines)


def difference_table(frame: pd.DataFrame, column: str) -> str:
    """The mean difference of each method from single_task and from mmoe, paired by seed."""
    aurocs = frame.pivot(index="seed", columns="method", values=column)
    baselines = [baseline for baseline in ("single_task", "mmoe") if baseline in aurocs]
    lines = []
    for method in frame["method"].unique():
        cells = []
        for baseline in baselines:
            difference = (aurocs[method] - aurocs[baseline]).dropna()
            half = half_interval(difference)
            note = " (not significant)" if abs(difference.mean()) <= half else ""
            cells.append("-" if method == baseline else f"{difference.mean():+.4f} ± {half:.4f}{note}")
        lines.append([method, *cells])
    return table(["method", *(f"minus {baseline}" for baseline in baselines)], lines)


def draw_runs(frame: pd.DataFrame, column: str, label: str, path: Path) -> None:
    """Draw a box for each method, and every run as a point.

    Runs far below the whiskers of all methods are triangles at the left edge with their values; otherwise
    they would squeeze all boxes together.
    """
    methods = list(frame["method"].unique())[::-1]
    values = [frame.loc[frame["method"] == method, column].to_numpy() for method in methods]
    figure = Figure(figsize=(7, 0.45 * len(methods) + 1.2), layout="constrained")
    axes = figure.subplots()
    boxes = axes.boxplot(
        values, orientation="horizontal", tick_labels=methods, showfliers=False, widths=0.5,
        medianprops={"color": "black"},
    )  # fmt: skip
    whiskers = np.concatenate([line.get_xdata() for line in boxes["whiskers"]])
    edge = whiskers.min() - 0.5 * np.ptp(whiskers)
    jitter = np.random.default_rng(0)
    style = {"ms": 3.5, "mfc": "none", "mec": "0.35", "linestyle": "none"}
    for i, runs in enumerate(values, 1):
        near, far = runs[runs >= edge], np.sort(runs[runs < edge])
        axes.plot(near, i + jitter.uniform(-0.15, 0.15, len(near)), "o", **style)
        axes.plot(np.full(len(far), edge), np.full(len(far), i), "<", **style)
        if len(far):
            text = ", ".join(f"{run:.4f}" for run in far)
            axes.annotate(text, (edge, i), (6, 0), textcoords="offset points", va="center", fontsize="small")
    marks = "a circle: one run; box: quartiles"
    if axes.texts:
        marks += "; a triangle: a run further left"
    axes.set_xlabel(f"{label}\n({marks})")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
