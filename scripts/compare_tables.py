"""Compare MMoE, a shared bottom, single-task networks and LightGBM on tables of other people.

usage: MMOE_TABLES_DIR=... python scripts/compare_tables.py [option=value ...] [overrides]

    tables=hillstrom,datacar,movielens,student,ai4i   experiments of scripts/other_tables
    runs=8               seeds of each network, as replicas, and of LightGBM
    trials=10            trials in LightGBM's random search, for each task
    folder=runs/compare_tables   run folders; finished ones are used again
    out=docs/results/tables      folder for the table and the results of all runs

All programs have the same training, validation and test rows. All other arguments are overrides for the
trainings of mmoe. It needs pip install 'mmoe[bench]'.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from commands import train_once
from options import parse, stop
from tables import table
from tqdm import tqdm

from mmoe import load
from mmoe.data.splits import Dataset
from mmoe.data.table_files import CsvOptions, find_files, read_table
from mmoe.intervals import half_interval
from mmoe.tasks import Task
from mmoe.training.metrics import TaskMetrics

DEFAULTS = {
    "tables": "hillstrom,datacar,movielens,student,ai4i", "runs": "8", "trials": "10",
    "folder": "runs/compare_tables", "out": "docs/results/tables",
}  # fmt: skip
CONFIGS = Path(__file__).parent / "other_tables"
# Small networks, because the tables are small. All have about as many parameters.
NETWORKS = {
    "MMoE": ["model=mmoe", "model.num_experts=4", "model.expert_units=[16]", "model.tower_units=[8]"],
    "shared bottom": ["model=shared_bottom", "model.bottom_units=[64]", "model.tower_units=[8]"],
    "single-task": ["model=single_task", "model.units=[24,8]"],
}
LIGHTGBM = "LightGBM, one model per task"
OBJECTIVES = {
    "binary": ("binary", "auc"), "multiclass": ("multiclass", "multi_logloss"),
    "regression": ("regression", "l2"), "count": ("poisson", "poisson"),
}  # fmt: skip


SHOWN = {
    "binary": ("auroc", "average_precision"), "multiclass": ("auroc", "accuracy"),
    "regression": ("rmse", "mae"), "count": ("poisson_deviance", "mae"),
}  # fmt: skip


def main() -> None:
    """Train all models and write the table."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"runs": 2, "trials": 1})
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
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with tqdm(total=len(names) * (1 + len(NETWORKS)), unit="model") as bar:
        for name in names:
            given = [*overrides]
            if name == "movielens":
                given.append(f"data.train={join_movielens(folder)}")
            for label, model in NETWORKS.items():
                found += train_network(
                    folder / name / label.replace(" ", "_"), name, label, model, given, runs
                )
                bar.update()
            run = load(folder / name / "MMoE")
            found += train_lightgbm(name, run.data.dataset, runs, int(options["trials"]))
            bar.update()
    report(pd.DataFrame(found), options)


def join_movielens(folder: Path) -> Path:
    """Join ratings with films, and write them as one Parquet file."""
    source, target = Path(os.environ["MMOE_TABLES_DIR"]) / "movielens_small", folder / "movielens.parquet"
    if not target.exists():
        ratings, movies = (
            read_table(find_files(source / f"{name}.csv.gz"), CsvOptions()).to_pandas()
            for name in ("ratings", "movies")
        )
        movies["year"] = pd.to_numeric(movies["title"].str.extract(r"\((\d{4})\)\s*$")[0])
        joined = ratings.merge(movies.drop(columns="title"), on="movieId")
        joined["liked"] = (joined["rating"] >= 4).astype(int)
        joined.to_parquet(target)
    return target


def train_network(
    folder: Path, name: str, label: str, model: Sequence[str], overrides: Sequence[str], runs: int
) -> list[dict[str, Any]]:
    """The test metrics of each replica of a network."""
    given = [f"experiment={name}", *model, f"replicas={runs}", "trainer=cpu", "figures=false"]
    train_once(folder, "--config-dir", str(CONFIGS), *given, *overrides)
    metrics = load(folder).metrics
    return [
        {"table": name, "model": label, "run": number, "task": task, "seconds": metrics["seconds"] / runs}
        | values
        for number, one in enumerate(metrics["runs"])
        for task, values in one["test"].items()
    ]


def lightgbm_inputs(data: Dataset, task: int, split: str) -> np.ndarray:
    """Numbers [N, M], and each level as its rank by the mean training label of the task [N, P]."""
    train, rows = data.splits["train"], data.splits[split]
    known = slice(None) if train.known is None else train.known[:, task]
    labels, size = train.labels[known, task].double(), data.schema.num_levels + 1
    rank = torch.empty(size, train.levels.shape[1])
    for column, codes in enumerate(train.levels[known].long().T):
        count, sums = torch.bincount(codes, minlength=size), torch.bincount(codes, labels, size)
        rank[:, column] = (sums / count).nan_to_num(-1e9).argsort(stable=True).argsort().float()
    return torch.cat([rows.numbers, rank.gather(0, rows.levels.long())], dim=1).numpy()


def train_lightgbm(name: str, data: Dataset, runs: int, trials: int) -> list[dict[str, Any]]:
    """The test metrics of each seed of LightGBM. The parameters are the best of a random search."""
    import lightgbm as lgb

    found = []
    for number, task in enumerate(data.schema.tasks):
        objective, metric = OBJECTIVES[task.kind]
        sets = {}
        for split in ("train", "val"):
            rows = data.splits[split]
            known = np.ones(len(rows.labels), bool) if rows.known is None else rows.known[:, number].numpy()
            weights = None if rows.weights is None else rows.weights[:, number].numpy()[known]
            labels = rows.labels[:, number].numpy()[known]
            sets[split] = lgb.Dataset(lightgbm_inputs(data, number, split)[known], labels, weight=weights)
        common = {
            "objective": objective, "metric": metric, "verbosity": -1, "num_threads": 1, "bagging_freq": 1,
            "feature_pre_filter": False,
        }  # fmt: skip
        if task.num_outputs > 1:
            common["num_class"] = task.num_outputs

        def fit(parameters: dict[str, Any], common: dict[str, Any] = common, sets: Any = sets) -> Any:
            stopping = lgb.early_stopping(50, verbose=False)
            return lgb.train(common | parameters, sets["train"], 1000, [sets["val"]], callbacks=[stopping])

        random, best, best_value = np.random.default_rng(0), {}, -np.inf
        for _ in range(trials):
            tried = {
                "learning_rate": float(np.exp(random.uniform(np.log(0.02), np.log(0.2)))),
                "num_leaves": int(random.integers(4, 64)), "min_data_in_leaf": int(random.integers(5, 100)),
                "feature_fraction": float(random.uniform(0.4, 1)), "lambda_l2": float(random.uniform(0, 20)),
                "bagging_fraction": float(random.uniform(0.5, 1)),
            }  # fmt: skip
            value = fit(tried).best_score["valid_0"][metric] * (1 if metric == "auc" else -1)
            if value > best_value:
                best, best_value = tried, value
        for seed in range(runs):
            booster = fit(best | {"seed": seed})
            raw = booster.predict(lightgbm_inputs(data, number, "test"), raw_score=True)
            values = test_metrics(data, number, to_logits(task, torch.from_numpy(np.atleast_1d(raw))))
            found.append({"table": name, "model": LIGHTGBM, "run": seed, "task": task.name} | values)
    return found


def to_logits(task: Task, raw: torch.Tensor) -> torch.Tensor:
    """LightGBM's raw scores as the logits [N, W] of a task."""
    if task.kind == "regression":
        raw = (raw - task.mean) / task.std  # type: ignore[attr-defined]
    elif task.kind == "count":
        raw = raw - np.log(task.mean)  # type: ignore[attr-defined]
    return raw.reshape(len(raw), -1)


def test_metrics(data: Dataset, number: int, logits: torch.Tensor) -> dict[str, float]:
    """The test metrics of one task."""
    rows, task = data.splits["test"], data.schema.tasks[number]
    own = slice(number, number + 1)
    known = None if rows.known is None else rows.known[:, own]
    values = TaskMetrics([task])("test", logits, rows.labels[:, own], known)
    return {name.split("/")[-1]: float(value) for name, value in values.items()}


def report(frame: pd.DataFrame, options: dict[str, str]) -> None:
    """Write and print the table, and write the results of all runs."""
    lines = []
    for (name, task), rows in frame.groupby(["table", "task"], sort=False):
        run = load(Path(options["folder"]).absolute() / str(name) / "MMoE")
        kind = next(one for one in run.schema.tasks if one.name == task)
        for metric in SHOWN[kind.kind]:
            by_model = {label: part.set_index("run")[metric] for label, part in rows.groupby("model")}
            cells = [str(name), str(task), metric.replace("_", " ")]
            for label in [*NETWORKS, LIGHTGBM]:
                values = by_model[label]
                difference = values - by_model["MMoE"]
                shown = f"{values.mean():.4g}"
                if label != "MMoE":
                    shown += f" ({difference.mean():+.2g} ± {half_interval(difference):.2g})"
                cells.append(shown)
            lines.append(cells)
    text = [
        "# Tables of other people",
        f"Test metrics, means of {options['runs']} seeds on one split. In parentheses: the difference to"
        " MMoE, with half the 95 % confidence interval, paired by seed. AUROC, average precision and accuracy"
        " are better if larger, the others if smaller.",
        f"LightGBM's parameters are the best of {options['trials']} random trials on the validation rows, for"
        " each task. `scripts/other_tables` has the configurations.",
        table(["table", "task", "metric", *NETWORKS, LIGHTGBM], lines),
    ]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "runs.csv", index=False, float_format="%.6g")
    (out / "tables.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
