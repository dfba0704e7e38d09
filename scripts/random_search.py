"""LightGBM's models of all tasks of a table. A random search finds their parameters.

N test rows, W outputs of a task.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from boosting import known_rows, lightgbm_inputs

from mmoe.data.splits import Dataset

OBJECTIVES = {
    "binary": ("binary", "auc"), "multiclass": ("multiclass", "multi_logloss"),
    "regression": ("regression", "l2"), "count": ("poisson", "poisson"),
}  # fmt: skip
MAX_ROUNDS, PATIENCE = 1000, 50  # of boosting; the validation rows choose the number of rounds


def train_lightgbm(data: Dataset, runs: int, trials: int) -> pd.DataFrame:
    """LightGBM's predictions for the test rows, with a column for each seed, as in predictions.parquet."""
    columns: dict[str, np.ndarray] = {}
    for number, task in enumerate(data.schema.tasks):
        random = np.random.default_rng(0)
        tried = [draw_parameters(random) for _ in range(trials)]
        values = [fit(data, number, parameters, 0)[1] for parameters in tried]
        best = tried[int(np.argmin(values))]
        for seed in range(runs):
            booster, _ = fit(data, number, best, seed)
            inputs = lightgbm_inputs(data, number, "test", best["prior"])
            predicted = booster.predict(inputs).reshape(len(inputs), -1)  # [N, W]
            columns |= {f"{name}_{seed}": values for name, values in task.table(predicted).items()}
    return pd.DataFrame(columns)


def draw_parameters(random: np.random.Generator) -> dict[str, Any]:
    """Draw LightGBM's parameters, and the `prior` of `lightgbm_inputs`."""
    return {
        "learning_rate": float(np.exp(random.uniform(np.log(0.02), np.log(0.2)))),
        "num_leaves": int(random.integers(4, 64)),
        "min_data_in_leaf": int(random.integers(5, 100)),
        "feature_fraction": float(random.uniform(0.4, 1)),
        "bagging_fraction": float(random.uniform(0.5, 1)),
        "lambda_l2": float(random.uniform(0, 20)),
        "prior": float(random.choice([0.0, 10.0, 100.0])),
    }


def fit(data: Dataset, number: int, parameters: Mapping[str, Any], seed: int) -> tuple[Any, float]:
    """LightGBM's model of one task, and its validation metric; smaller is better."""
    import lightgbm as lgb

    task, sets = data.schema.tasks[number], {}
    for split in ("train", "val"):
        rows = data.splits[split]
        known = known_rows(rows, number)
        inputs = lightgbm_inputs(data, number, split, parameters["prior"])[known]
        weights = None if rows.weights is None else rows.weights[:, number].numpy()[known]
        sets[split] = lgb.Dataset(inputs, rows.labels[:, number].numpy()[known], weight=weights)
    objective, metric = OBJECTIVES[task.kind]
    if metric == "auc" and task.undefined_metrics(data.splits["val"].labels[known, number]):
        metric = "binary_logloss"  # all validation rows are of one class
    settings = {
        **parameters, "objective": objective, "metric": metric, "verbosity": -1, "num_threads": 1,
        "bagging_freq": 1, "seed": seed, "num_class": task.num_outputs,
    }  # fmt: skip
    del settings["prior"]
    stopping = lgb.early_stopping(PATIENCE, verbose=False)
    booster = lgb.train(settings, sets["train"], MAX_ROUNDS, [sets["val"]], callbacks=[stopping])
    value = float(booster.best_score["valid_0"][metric])
    return booster, -value if metric == "auc" else value
