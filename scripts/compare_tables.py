"""Compare MMoE, a shared bottom, single-task networks and LightGBM on tables of other people.

usage: MMOE_TABLES_DIR=... python scripts/compare_tables.py [option=value ...] [overrides]

    tables=hillstrom,datacar,movielens,student,ai4i   experiments of scripts/other_tables
    runs=8               seeds of each network, as replicas, and of LightGBM
    trials=30            trials in LightGBM's random search, for each task
    resamples=500        resamples of the test rows, for the intervals of differences
    folder=runs/compare_tables   run folders and predictions; finished ones are used again
    out=docs/results/tables      folder for the tables and the results of all runs

MMOE_TABLES_DIR is the folder of the tables. All models have the same training, validation and test rows. All
other arguments are overrides for the trainings of mmoe. It needs pip install 'mmoe[bench]'.

N test rows, K resamples, W outputs of a task.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from commands import compose_config, train_once
from finished import check_settings
from join_movielens import join
from omegaconf import OmegaConf
from options import parse, stop
from random_search import train_lightgbm
from tables import table
from tqdm import tqdm

from mmoe import load
from mmoe.atomic import write
from mmoe.intervals import draw_rows, half_interval
from mmoe.tasks import Task

DEFAULTS = {
    "tables": "hillstrom,datacar,movielens,student,ai4i", "runs": "8", "trials": "30", "resamples": "500",
    "folder": "runs/compare_tables", "out": "docs/results/tables",
}  # fmt: skip
CONFIGS = Path(__file__).parent / "other_tables"
MMOE = "MMoE"
# Small networks, because the tables are small. All have about as many parameters.
NETWORKS = {
    MMOE: ["model=mmoe", "model.num_experts=4", "model.expert_units=[16]", "model.tower_units=[8]"],
    "shared bottom": ["model=shared_bottom", "model.bottom_units=[64]", "model.tower_units=[8]"],
    "single-task": ["model=single_task", "model.units=[24,8]"],
}
LIGHTGBM = "LightGBM, one model per task"
SHOWN = {
    "binary": ("auroc", "average_precision"), "multiclass": ("auroc", "accuracy"),
    "regression": ("rmse", "mae"), "count": ("poisson_deviance", "mae"),
}  # fmt: skip
COMPARED_PARTS = ("data", "inputs", "model", "objective", "learner", "trainer")  # of a configuration


def main() -> None:
    """Train all models and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"runs": 2, "trials": 1, "resamples": 1})
    try:
        import lightgbm  # noqa: F401
    except ModuleNotFoundError as error:
        stop(f"needs {error.name}: pip install 'mmoe[bench]'")
    names = options["tables"].split(",")
    known = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    if not set(names) <= set(known):
        stop(f"tables={options['tables']}: must be some of {', '.join(known)}")
    if "MMOE_TABLES_DIR" not in os.environ:
        stop("MMOE_TABLES_DIR: must be set to the folder of the tables")
    folder, runs = Path(options["folder"]).absolute(), int(options["runs"])
    given = {name: [f"experiment={name}", *overrides] for name in names}
    if "movielens" in names:
        joined = folder / "movielens.parquet"
        if not joined.exists():
            join(Path(os.environ["MMOE_TABLES_DIR"]) / "movielens_small", joined)
        given["movielens"].append(f"data.train={joined}")
    settings: dict[str, Any] = {name: options[name] for name in ("runs", "trials")}
    for name in names:
        search_path = f"hydra.searchpath=[file://{CONFIGS.absolute()}]"
        config = OmegaConf.to_container(compose_config(search_path, *given[name]), resolve=False)
        settings[name] = {key: config[key] for key in COMPARED_PARTS}
    check_settings(folder / "options.json", settings)
    found, differences = [], []
    with tqdm(total=len(names) * (1 + len(NETWORKS)), unit="model") as bar:
        for name in names:
            for label, model in NETWORKS.items():
                arguments = [*given[name], *model, f"replicas={runs}", "trainer=cpu", "figures=false"]
                train_once(network_folder(folder, name, label), "--config-dir", str(CONFIGS), *arguments)
                bar.update()
            run = load(network_folder(folder, name, MMOE))
            trees = folder / name / "lightgbm.parquet"
            if not trees.exists():
                predictions = train_lightgbm(run.data.dataset, runs, int(options["trials"]))
                write(trees, predictions.to_parquet)
            predicted = {label: load(network_folder(folder, name, label)).predictions for label in NETWORKS}
            predicted[LIGHTGBM] = pd.read_parquet(trees)
            for task in run.schema.tasks:
                values, drawn = task_metrics(task, predicted, runs, int(options["resamples"]))
                found += [{"table": name, "task": task.name} | line for line in values]
                differences += compare(name, task, pd.DataFrame(values), drawn)
            bar.update()
    report(pd.DataFrame(found), pd.DataFrame(differences), options)


def network_folder(folder: Path, name: str, label: str) -> Path:
    """The run folder of a network."""
    return folder / name / label.lower().replace(" ", "_")


def task_metrics(
    task: Task, predicted: Mapping[str, pd.DataFrame], runs: int, resamples: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, np.ndarray]]]:
    """The test metrics of each model and seed; and their means over seeds for resamples of the test rows [K].

    All models share the same resamples.
    """
    labels = predicted[MMOE][f"{task.name}_label"]
    known = labels.notna().to_numpy()
    encoded, _ = task.encode(labels[known])
    if task.kind == "binary":
        encoded = labels[known].to_numpy(np.float32)  # 0 and 1, not the levels of the file
    lines, drawn = [], {}
    for label, frame in predicted.items():
        metrics = []
        for seed in range(runs):
            names = [f"{name}_{seed}" for name in task.prediction_columns[-task.num_outputs :]]
            metrics.append(task.resampled_metrics(frame.loc[known, names].to_numpy(), encoded))
            values = metrics[-1](np.ones((1, int(known.sum())), np.int32))
            lines.append(
                {"model": label, "run": seed} | {name: float(one[0]) for name, one in values.items()}
            )
        parts = [
            [one(counts.take(np.flatnonzero(known), axis=1)) for one in metrics]
            for counts in draw_rows(len(labels), resamples, 0)
        ]
        drawn[label] = {
            name: np.concatenate([np.mean([one[name] for one in part], axis=0) for part in parts])
            for name in task.METRICS
        }
    return lines, drawn


def compare(
    name: str, task: Task, values: pd.DataFrame, drawn: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """The mean of each shown metric, and its difference to MMoE with both intervals."""
    lines = []
    for metric in SHOWN[task.kind]:
        by_model = {str(label): part.set_index("run")[metric] for label, part in values.groupby("model")}
        for label in [*NETWORKS, LIGHTGBM]:
            difference = by_model[label] - by_model[MMOE]
            low, high = np.nanpercentile(drawn[label][metric] - drawn[MMOE][metric], [2.5, 97.5])
            lines.append({
                "table": name, "task": task.name, "metric": metric, "model": label,
                "mean": by_model[label].mean(), "difference": difference.mean(),
                "half_interval_of_seeds": half_interval(difference), "low_of_rows": low, "high_of_rows": high,
            })  # fmt: skip
    return lines


def is_supported(row: Mapping[str, Any]) -> bool:
    """Whether both intervals of a difference, over seeds and over test rows, exclude 0 on its side."""
    difference, half = row["difference"], row["half_interval_of_seeds"]
    low, high = row["low_of_rows"], row["high_of_rows"]
    return bool(abs(difference) > half and (low > 0 if difference > 0 else high < 0))


def report(found: pd.DataFrame, differences: pd.DataFrame, options: Mapping[str, str]) -> None:
    """Write and print the table, and write the results of all runs and the differences."""
    lines = []
    for (name, task, metric), rows in differences.groupby(["table", "task", "metric"], sort=False):
        cells = [str(name), str(task), str(metric).replace("_", " ")]
        for row in rows.to_dict("records"):
            shown = f"{row['mean']:.4g}"
            if row["model"] != MMOE:
                shown += f" ({row['difference']:+.2g} ± {row['half_interval_of_seeds']:.2g})"
                shown += "*" * is_supported(row)
            cells.append(shown)
        lines.append(cells)
    text = [
        "# Tables of other people",
        f"Test metrics, means of {options['runs']} seeds on one split. In parentheses: the difference to"
        " MMoE, ± half the 95 % confidence interval of its mean over the seeds (Student's t, paired by seed)."
        " A star marks a difference that two intervals support: this one, and the one over"
        f" {options['resamples']} resamples of the test rows, which takes the trained models as given. No"
        " interval covers other splits, and of so many differences some have a star by chance. The rmse, the"
        " mae and the deviance"
        " are better if they are smaller, the other metrics if they are larger.",
        f"LightGBM's parameters are the best of {options['trials']} random trials for each task, and the"
        " task's own validation metric chooses the number of rounds. All tasks of a network share one epoch,"
        " which the validation metric of the main task chooses. `scripts/other_tables` has the"
        " configurations. docs/tables.md says which choices were made after test results had been seen.",
        table(["table", "task", "metric", *NETWORKS, LIGHTGBM], lines),
        "[Every run](runs.csv), and [both intervals of each difference](differences.csv).",
    ]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    found.to_csv(out / "runs.csv", index=False, float_format="%.6g")
    differences.to_csv(out / "differences.csv", index=False, float_format="%.6g")
    (out / "tables.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
