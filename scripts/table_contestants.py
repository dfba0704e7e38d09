"""The contestants of scripts/compare_tables.py, and how their settings are chosen.

R seeds, N rows, W outputs of a task.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from options import stop
from random_search import Settings, Space, search
from table_lightgbm import predict_with_lightgbm
from table_networks import Overrides, encoded_rows, predict_with_networks
from table_report import MMOE

from mmoe.analysis.lightgbm_training import known_rows
from mmoe.data.splits import Dataset

NETWORKS = {MMOE: "mmoe", "shared bottom": "shared_bottom", "single-task": "single_task"}
SEARCH_SEEDS = range(1000, 1001)  # not among those of the test
MAX_SEARCH_ROWS = 20_000  # training rows of a trial, for all contestants


class Contestant(NamedTuple):
    """A method on a table, the space of its settings, and how it trains and predicts.

    `predict` takes settings, seeds, a split and the largest number of training rows, and returns the
    predictions [R, N, W] of models that it trains.
    """

    table: str
    label: str
    space: Space
    predict: Callable[..., np.ndarray]


def contestants(name: str, arguments: Overrides, number: int, spaces: Mapping[str, Any]) -> list[Contestant]:
    """The contestants for task `number` of a table, MMoE first."""
    found = []
    for label, model in NETWORKS.items():
        space = {**spaces["networks"], **spaces[model], **spaces["tables"].get(name, {})}
        found.append(Contestant(name, label, space, partial(predict_with_networks, arguments, model, number)))
    trees = partial(predict_with_lightgbm, encoded_rows(arguments), number)
    return [*found, Contestant(name, "LightGBM", spaces["lightgbm"], trees)]


def find_settings(
    contestant: Contestant, data: Dataset, number: int, name: str, trials: int
) -> dict[str, Any]:
    """Search the settings with the best validation value of a task; `name` seeds the search."""
    task = data.schema.tasks[number]
    labels, known = labels_of(data, number, "val")

    def evaluate(settings: Settings) -> float:
        (predicted,) = contestant.predict(settings, SEARCH_SEEDS, "val", MAX_SEARCH_ROWS)
        if not np.isfinite(predicted).all():
            return float("nan")
        return task.metric_values(predicted[known], labels[known])[task.main_metric]

    larger_is_better = task.METRICS[task.main_metric]
    found = search(contestant.space, trials, name, evaluate, larger_is_better)
    return {"metric": task.main_metric, **found}


def labels_of(data: Dataset, number: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a task [N], and which of them are known [N]."""
    rows = data.splits[split]
    return rows.labels[:, number].numpy(), known_rows(rows, number)


def check_validation_rows(name: str, data: Dataset) -> None:
    """Stop if the validation rows of a table cannot compare the trials for one of its tasks."""
    for number, task in enumerate(data.schema.tasks):
        labels, known = labels_of(data, number, "val")
        if task.main_metric in task.undefined_metrics(torch.from_numpy(labels[known])):
            count = f"{known.sum()} known labels, all equal" if known.any() else "no known label"
            stop(f"tables={name}: the validation rows of task {task.name} have {count}")
