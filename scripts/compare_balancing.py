"""Compare plain MMoE with MMoE under each balancing strategy, and with its descendants, on several data sets.

usage: MMOE_TABLES_DIR=... python scripts/compare_balancing.py data.dir=... [option=value ...]

    datasets=census,census_education,synthetic_0.5,synthetic_1,hillstrom,datacar
    contestants=all    or some of them: names in conf/balance, and the models of DESCENDANTS
    seeds=16           runs of each contestant, as replicas
    trials=10          trials in each contestant's search
    folder=runs/compare_balancing   studies and run folders; finished ones are used again
    out=docs/results/balancing      folder for the tables, the figure, and the results of all runs: a file for
                                    each data set; contestants in these files are not computed again. The
                                    tables also have the costs of costs.csv, which `bench.py balance` measured

Each contestant is tuned by mmoe.tune with the same number of trials, for the best validation metric of the
main task. `constant` is MMoE with constant weights of the losses. A stopped script continues when it is
started again; with other contestants, it adds them. Several processes may share the folders if each has other
data sets. All other arguments are overrides for the trainings; data.dir and data.source are those of the
census data.
"""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from commands import allow_existing_keys, run_command, train_once
from filelock import FileLock
from hydra.utils import get_class
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from options import parse, some_of, stop
from report_text import table
from stored_results import check_settings, store_settings

from mmoe import CONF_DIR
from mmoe.atomic import write, write_text
from mmoe.balancing.strategies import Strategy
from mmoe.intervals import half_interval
from mmoe.tasks import validation_metrics
from mmoe.training.run_folder import read_metrics, read_schema

TABLES = f"hydra.searchpath=[file://{Path(__file__).parent.absolute() / 'other_tables'}]"
LARGE_BATCHES = "data.batch_size=1024"  # a third of the time of batches of 256
DATASETS = {
    "census": ["experiment=census", LARGE_BATCHES],
    "census_education": ["experiment=census_education", LARGE_BATCHES],
    "synthetic_0.5": ["experiment=synthetic", "data.p=0.5"],
    "synthetic_1": ["experiment=synthetic", "data.p=1.0"],
    "hillstrom": [TABLES, "experiment=table", "data=hillstrom"],
    "datacar": [TABLES, "experiment=table", "data=datacar"],
}
BASELINE = "constant"
DESCENDANTS = ("dselect_k", "adatt", "stem", "aitm", "esmm")
# AITM needs binary tasks without `where`, and ESMM needs a binary task whose `where` names another.
ONLY_FOR = {"aitm": ("census", "census_education"), "esmm": ("hillstrom",)}
WITH_COUNTS = ("datacar",)  # the loss of a count may be negative
DEFAULTS = {
    "datasets": ",".join(DATASETS), "contestants": "all", "seeds": "16", "trials": "10",
    "folder": "runs/compare_balancing", "out": "docs/results/balancing",
}  # fmt: skip


def main() -> None:
    """Tune and train the contestants on each data set, and write the tables."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"seeds": 2, "trials": 1})
    strategies = sorted(path.stem for path in (CONF_DIR / "balance").glob("*.yaml"))
    known = [BASELINE, *(name for name in strategies if name != BASELINE), *DESCENDANTS]
    datasets = some_of(options, "datasets", DATASETS)
    chosen = known if options["contestants"] == "all" else some_of(options, "contestants", known)
    if "MMOE_TABLES_DIR" not in os.environ and any(TABLES in DATASETS[name] for name in datasets):
        stop("MMOE_TABLES_DIR: must be set to the folder of the tables")
    root, out = Path(options["folder"]).absolute(), Path(options["out"])
    settings = {key: options[key] for key in ("seeds", "trials")}
    kept = [out / f"{dataset}.csv" for dataset in DATASETS]
    check_settings(out / "settings.json", settings, overrides, kept)  # stops before anything is written
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "settings.lock")  # other processes add "files of ..." to the settings
    for folder in (root, out):
        with lock:
            store_settings(folder / "settings.json", settings, overrides)
    census = [override for override in overrides if override.startswith(("data.dir=", "data.source="))]
    others = [override for override in overrides if override not in census]
    for dataset in datasets:
        rows = ["data.source=official", *census] if dataset.startswith("census") else []
        given = [*DATASETS[dataset], *rows, *others]
        for name in dict.fromkeys([BASELINE, *chosen]):
            runs = read_runs(out, dataset)
            if can_train(name, dataset) and name not in set(runs["contestant"]):
                print(f"{dataset}: {name}", flush=True)
                folder = root / dataset / name
                new = pd.DataFrame(tune_and_train(folder, dataset, name, given, options))
                files = {f"files of {dataset}": dict(read_schema(folder / "run").files)}
                with lock:
                    store_settings(out / "settings.json", settings | files, overrides)
                runs = pd.concat([runs, new]) if len(runs) else new
                runs = runs.sort_values("contestant", key=lambda names: names.map(known.index), kind="stable")
                write_text(out / f"{dataset}.csv", runs.to_csv(index=False, float_format="%.6f"))
    finished = [read_runs(out, dataset) for dataset in DATASETS if (out / f"{dataset}.csv").exists()]
    write_report(pd.concat(finished), out, options)


def can_train(name: str, dataset: str) -> bool:
    """Whether a contestant can be trained on the tasks of a data set."""
    if dataset in WITH_COUNTS and name not in DESCENDANTS:
        strategy: type[Strategy] = get_class(OmegaConf.load(CONF_DIR / f"balance/{name}.yaml")._target_)
        return not strategy.needs_positive_losses
    return dataset in ONLY_FOR.get(name, DATASETS)


def read_runs(out: Path, dataset: str) -> pd.DataFrame:
    """The results of a data set's runs, one line for each contestant, seed and task, if any exist yet."""
    path = out / f"{dataset}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["contestant"])


def tune_and_train(
    folder: Path, dataset: str, name: str, overrides: list[str], options: dict[str, str]
) -> list[dict[str, Any]]:
    """Tune and train a contestant. Return the test metrics, one line for each task and seed."""
    is_model = name in DESCENDANTS
    choice = [f"model={name if is_model else 'mmoe'}", f"balance={BASELINE if is_model else name}"]
    study = folder / "study"
    run_command("tune", *overrides, *choice, f"trials={options['trials']}", "sampler=tpe", f"folder={study}")
    tuned = next((study / "experiment").glob("*.yaml"))
    search = [override for override in overrides if override.startswith("hydra.")]
    train_once(
        folder / "run", "--config-dir", str(study), f"experiment={tuned.stem}", *search,
        *allow_existing_keys([one for one in overrides if not one.startswith(("experiment=", "hydra."))]),
        f"replicas={options['seeds']}", "figures=false",
    )  # fmt: skip
    metrics, schema = read_metrics(folder / "run"), read_schema(folder / "run")
    larger_is_better = validation_metrics(schema.tasks)
    found = []
    for run in metrics["runs"]:
        for task in schema.tasks:
            found.append(
                {
                    "dataset": dataset,
                    "contestant": name,
                    "task": task.name,
                    "metric": task.main_metric,
                    "larger is better": larger_is_better[f"val/{task.name}/{task.main_metric}"],
                    "seed": run["seed"],
                    "value": run["test"][task.name][task.main_metric],
                    "parameters": metrics["parameters"],
                    "samples per second": metrics["samples_per_second"],
                }
            )
    return found


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for each data set, task and contestant: the mean, and the gain paired by seed."""
    lines = []
    for (dataset, task), own in runs.groupby(["dataset", "task"], sort=False):
        values = own.pivot(index="seed", columns="contestant", values="value")
        sign = 1 if own["larger is better"].iloc[0] else -1
        for name in own["contestant"].unique():
            gain = sign * (values[name] - values[BASELINE])
            lines.append(
                {
                    "dataset": dataset, "task": task, "metric": own["metric"].iloc[0], "contestant": name,
                    "mean": values[name].mean(), "half": half_interval(values[name]), "gain": gain.mean(),
                    "gain_half": half_interval(gain),
                    "parameters": own.loc[own["contestant"] == name, "parameters"].iloc[0],
                }
            )  # fmt: skip
    return pd.DataFrame(lines)


def write_report(runs: pd.DataFrame, out: Path, options: dict[str, str]) -> None:
    """Write a table for each data set, and the figure."""
    found, costs = differences(runs), read_costs(out / "costs.csv")
    count = int((found["contestant"] != BASELINE).sum())
    text = [
        f"Test metrics of {options['seeds']} seeds, after {options['trials']} trials of each contestant. `±`"
        " is half the 95 % interval of the mean over seeds. A gain is the improvement over MMoE with constant"
        " weights, paired by seed. A gain in bold has an interval without 0. Of the"
        f" {count} gains, about {count / 20:.0f} would be in bold by chance if nothing helped. The intervals"
        " cover the choice of the seed, but neither the search nor the choice of the rows.",
        "The cost of a step is its time divided by that of a step with constant weights, on the official"
        " census rows at the batch sizes in the header. It was measured apart from these trainings, and"
        " descendants had the sizes in conf/model there.",
    ]
    for dataset, own in found.groupby("dataset", sort=False):
        tasks = list(own["task"].unique())
        header = ["contestant", f"cost of a step: {', '.join(costs) or 'not measured'}", "parameters"]
        for task in tasks:
            metric = own.loc[own["task"] == task, "metric"].iloc[0]
            header += [f"{task}: {metric}", "gain"]
        lines = []
        for name, rows in own.groupby("contestant", sort=False):
            times = [speeds.get(str(name)) for speeds in costs.values()]
            line = [str(name), ", ".join(f"{time:.1f}" if time else "-" for time in times) or "-"]
            line.append(f"{rows['parameters'].iloc[0]:,}")
            for _, row in rows.iterrows():
                digits, finer = (4, 5) if abs(row["mean"]) < 100 else (0, 0)
                gain = f"{row['gain']:+,.{finer}f} ± {row['gain_half']:,.{finer}f}"
                is_clear = abs(row["gain"]) > row["gain_half"]
                mean = f"{row['mean']:,.{digits}f} ± {row['half']:,.{digits}f}"
                line += [mean, f"**{gain}**" if is_clear else "-" if name == BASELINE else gain]
            lines.append(line)
        text += [f"## {dataset}", table(header, lines)]
    write_text(out / "balancing.md", "\n\n".join(text) + "\n")
    draw(found, out / "balancing.png")


def read_costs(path: Path) -> Mapping[str, Mapping[str, float]]:
    """The time of a step divided by that of a step with constant weights, by batch size and contestant."""
    if not path.exists():
        return {}
    return pd.read_csv(path, index_col="contestant").to_dict()  # type: ignore[return-value]


def draw(found: pd.DataFrame, path: Path) -> None:
    """Draw the gains with their intervals: a panel for each task of each data set."""
    panels = list(found.groupby(["dataset", "task"], sort=False))
    names = list(found["contestant"].unique())[::-1]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 1.5, (0.2 * len(names) + 0.9) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, ((dataset, task), own) in zip(axes, panels, strict=False):
        places = [names.index(name) for name in own["contestant"]]
        panel.errorbar(own["gain"], places, xerr=own["gain_half"], fmt="o", ms=3, lw=1, color="black")
        panel.axvline(0, lw=0.8, color="0.6")
        panel.set_title(f"{dataset}: {task}", fontsize="small")
        panel.set_xlabel(f"gain in {own['metric'].iloc[0]}", fontsize="small")
        panel.set_yticks(range(len(names)), names, fontsize="x-small")
        panel.tick_params(axis="x", labelsize="x-small")
        panel.locator_params(axis="x", nbins=4)
    for panel in axes[len(panels) :]:
        panel.remove()
    write(path, partial(figure.savefig, dpi=130))


if __name__ == "__main__":
    main()
