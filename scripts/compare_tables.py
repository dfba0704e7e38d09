"""Compare MMoE, a shared bottom, single-task networks and LightGBM on tables of other people.

usage: MMOE_TABLES_DIR=... python scripts/compare_tables.py [option=value ...] [overrides]

    tables=hillstrom,datacar,movielens,student,ai4i   data of scripts/other_tables
    trials=16            trials in the random search of each contestant, for each task
    runs=8               seeds of each contestant with the chosen settings
    resamples=500        resamples of the test rows, for the intervals of differences
    folder=runs/compare_tables   results of searches and predictions; finished ones are used again
    out=docs/results/tables      folder for the tables and the results of all runs

MMOE_TABLES_DIR is the folder of the tables. All contestants have the same training, validation and test rows,
and as many trials. Validation rows alone choose settings. A stopped script continues when it is started
again. All other arguments are overrides for the networks. It needs pip install 'mmoe[bench]'.

R seeds, N rows, W outputs of a task.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from boosting import known_rows
from finished import cached, check_settings
from join_movielens import join
from omegaconf import OmegaConf
from options import parse, stop
from random_search import Settings, Space, search
from table_lightgbm import predict_with_lightgbm
from table_networks import Overrides, composed, encoded_rows, predict_with_networks
from table_report import (
    CONSTANT,
    MMOE,
    Results,
    compare,
    constant_prediction,
    row_metrics,
    write_report,
)
from tqdm import tqdm

from mmoe.atomic import write
from mmoe.data.splits import Dataset

DEFAULTS = {
    "tables": "hillstrom,datacar,movielens,student,ai4i", "trials": "16", "runs": "8", "resamples": "500",
    "folder": "runs/compare_tables", "out": "docs/results/tables",
}  # fmt: skip
SPLIT_SEED = 2026  # was fixed before any model was trained on these splits
CONFIGS = Path(__file__).parent / "other_tables"
NETWORKS = {MMOE: "mmoe", "shared bottom": "shared_bottom", "single-task": "single_task"}
SEARCH_SEEDS = range(1000, 1001)  # not among those of the test
MAX_SEARCH_ROWS = 20_000  # training rows of a trial, for all contestants
COMPARED_PARTS = ("data", "inputs", "objective", "learner", "trainer", "callbacks")  # of a configuration


class Contestant(NamedTuple):
    """A method, the space of its settings, and how it trains and predicts.

    `predict` takes settings, seeds, a split and the largest number of training rows, and returns the
    predictions [R, N, W] of models that it trains.
    """

    label: str
    space: Space
    predict: Callable[..., np.ndarray]


def main() -> None:
    """Search, train and test all contestants, and write the tables."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"runs": 2, "trials": 1, "resamples": 1})
    try:
        import lightgbm  # noqa: F401
    except ModuleNotFoundError as error:
        stop(f"needs {error.name}: pip install 'mmoe[bench]'")
    names = options["tables"].split(",")
    known = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
    if not set(names) <= set(known):
        stop(f"tables={options['tables']}: must be some of {', '.join(known)}")
    if "MMOE_TABLES_DIR" not in os.environ:
        stop("MMOE_TABLES_DIR: must be set to the folder of the tables")
    folder = Path(options["folder"]).absolute()
    arguments = {name: table_overrides(name, folder, overrides) for name in names}
    spaces: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "spaces.yaml"))
    settings: dict[str, Any] = {"runs": options["runs"], "trials": options["trials"], "spaces": spaces}
    for name in names:
        config: Any = OmegaConf.to_container(composed(arguments[name]), resolve=False)
        settings[name] = {key: config[key] for key in COMPARED_PARTS}
    check_settings(folder / "options.json", settings)
    for name in names:
        check_validation_rows(name, encoded_rows(arguments[name]))

    results = Results([], [], [], {})
    for name in names:
        data = encoded_rows(arguments[name])
        results.num_rows[name] = data.schema.num_rows
        for number, task in enumerate(tqdm(data.schema.tasks, desc=name, unit="task")):
            predicted = {}
            for contestant in contestants(name, arguments[name], number, spaces):
                own = folder / name / task.name / contestant.label.lower().replace(" ", "_")
                find = partial(find_settings, contestant, data, number, f"{own.relative_to(folder)}", options)
                found = cached(own / "search.json", find)
                results.searches.append({"table": name, "task": task.name, "model": contestant.label} | found)
                if not (own / "test.npy").exists():
                    seeds = range(int(options["runs"]))
                    test = contestant.predict(found["settings"], seeds, "test")
                    write(own / "test.npy", lambda path, test=test: np.save(path, test))
                predicted[contestant.label] = np.load(own / "test.npy")
            labels, is_known = labels_of(data, number, "train")
            constant = constant_prediction(task, labels[is_known])
            predicted[CONSTANT] = np.broadcast_to(constant, predicted[MMOE].shape)
            compared = compare(task, predicted, *labels_of(data, number, "test"), int(options["resamples"]))
            for table, lines in zip((results.runs, results.differences), compared, strict=True):
                table += [{"table": name, "task": task.name} | line for line in lines]
    write_report(results, options)


def table_overrides(name: str, folder: Path, overrides: Sequence[str]) -> Overrides:
    """The arguments of mmoe.train for a table. The file of movielens is made first."""
    search_path = f"hydra.searchpath=[file://{CONFIGS.absolute()}]"
    arguments = [search_path, "experiment=table", f"data={name}", f"data.split_seed={SPLIT_SEED}"]
    if name == "movielens":
        joined = folder / "movielens.parquet"
        if not joined.exists():
            join(Path(os.environ["MMOE_TABLES_DIR"]) / "movielens_small", joined)
        arguments.append(f"data.train={joined}")
    return (*arguments, "trainer=cpu", *overrides)


def contestants(name: str, arguments: Overrides, number: int, spaces: Mapping[str, Any]) -> list[Contestant]:
    """The contestants for task `number` of a table, MMoE first."""
    found = []
    for label, model in NETWORKS.items():
        space = {**spaces["networks"], **spaces[model], **spaces["tables"].get(name, {})}
        found.append(Contestant(label, space, partial(predict_with_networks, arguments, model, number)))
    trees = partial(predict_with_lightgbm, encoded_rows(arguments), number)
    return [*found, Contestant("LightGBM", spaces["lightgbm"], trees)]


def check_validation_rows(name: str, data: Dataset) -> None:
    """Stop if the validation rows of a table cannot compare the trials for one of its tasks."""
    for number, task in enumerate(data.schema.tasks):
        labels, known = labels_of(data, number, "val")
        if task.main_metric in task.undefined_metrics(torch.from_numpy(labels[known])):
            count = f"{known.sum()} known labels, all equal" if known.any() else "no known label"
            stop(f"tables={name}: the validation rows of task {task.name} have {count}")


def labels_of(data: Dataset, number: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a task [N], and which of them are known [N]."""
    rows = data.splits[split]
    return rows.labels[:, number].numpy(), known_rows(rows, number)


def find_settings(
    contestant: Contestant, data: Dataset, number: int, name: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """Search the settings with the best validation value of a task."""
    task = data.schema.tasks[number]
    labels, known = labels_of(data, number, "val")

    def evaluate(settings: Settings) -> float:
        (predicted,) = contestant.predict(settings, SEARCH_SEEDS, "val", MAX_SEARCH_ROWS)
        if not np.isfinite(predicted).all():
            return float("nan")
        return row_metrics(task, predicted[known], labels[known])[task.main_metric]

    larger_is_better = task.METRICS[task.main_metric]
    found = search(contestant.space, int(options["trials"]), name, evaluate, larger_is_better)
    return {"metric": task.main_metric, **found}


if __name__ == "__main__":
    main()
