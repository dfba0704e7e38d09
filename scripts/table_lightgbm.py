"""LightGBM in scripts/compare_tables.py: train a model of one task, and predict the rows of a split.

R seeds, N rows, W outputs of a task.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from boosting import known_rows, level_inputs, lightgbm_inputs
from table_networks import limit_rows

from mmoe.data.splits import Dataset

OBJECTIVES = {
    "binary": ("binary", "auc"), "multiclass": ("multiclass", "multi_logloss"),
    "regression": ("regression", "l2"), "count": ("poisson", "poisson"),
}  # fmt: skip
MAX_ROUNDS, PATIENCE = 500, 30  # of boosting; the validation rows choose the number of rounds


def predict_with_lightgbm(
    data: Dataset,
    number: int,
    settings: Mapping[str, Any],
    seeds: range,
    split: str,
    max_rows: int | None = None,
) -> np.ndarray:
    """Train models with these seeds for task `number`, and predict a split: [R, N, W].

    With `max_rows`, only so many training rows are used.
    """
    data = limit_rows(data, max_rows)
    inputs = inputs_of(data, number, settings, split)
    predicted = [fit(data, number, settings, seed).predict(inputs) for seed in seeds]
    return np.stack(predicted).reshape(len(seeds), len(inputs), -1)


def inputs_of(data: Dataset, number: int, settings: Mapping[str, Any], split: str) -> np.ndarray:
    """The inputs of a split with these settings."""
    prior = None if settings["levels"] == "categories" else settings["prior"]
    return lightgbm_inputs(data, number, split, prior)


def fit(data: Dataset, number: int, settings: Mapping[str, Any], seed: int) -> Any:
    """LightGBM's model of one task."""
    import lightgbm as lgb

    task, sets = data.schema.tasks[number], {}
    categories = level_inputs(data.schema) if settings["levels"] == "categories" else []
    for split in ("train", "val"):
        rows = data.splits[split]
        known = known_rows(rows, number)
        inputs = inputs_of(data, number, settings, split)[known]
        weights = None if rows.weights is None else rows.weights[:, number].numpy()[known]
        labels = rows.labels[:, number].numpy()[known]
        sets[split] = lgb.Dataset(inputs, labels, weight=weights, categorical_feature=categories)
    objective, metric = OBJECTIVES[task.kind]
    given = {name: value for name, value in settings.items() if name not in ("levels", "prior")}
    parameters = {
        **given, "objective": objective, "metric": metric, "verbosity": -1, "num_threads": 1,
        "bagging_freq": 1, "seed": seed, "num_class": task.num_outputs,
    }  # fmt: skip
    stopping = lgb.early_stopping(PATIENCE, verbose=False)
    return lgb.train(parameters, sets["train"], MAX_ROUNDS, [sets["val"]], callbacks=[stopping])
