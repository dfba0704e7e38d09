"""LightGBM in scripts/compare_tables.py: train a model of one task, and predict the rows of a split.

R seeds, N rows, W outputs of a task.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from table_networks import limit_rows

from mmoe.analysis.lightgbm_training import lightgbm_inputs, train_lightgbm
from mmoe.data.splits import Dataset

MAX_ROUNDS, PATIENCE = 500, 30  # boosting rounds; the validation rows choose their number


def predict_with_lightgbm(
    data: Dataset,
    number: int,
    settings: Mapping[str, Any],
    seeds: range,
    split: str,
    max_rows: int | None = None,
) -> np.ndarray:
    """Train models with these seeds for task `number`, and predict a split: [R, N, W].

    At most `max_rows` training rows are used.
    """
    data = limit_rows(data, max_rows)
    prior = None if settings["levels"] == "categories" else settings["prior"]
    parameters = {name: value for name, value in settings.items() if name not in ("levels", "prior")}
    parameters["num_threads"] = 1
    inputs = lightgbm_inputs(data, number, split, prior)
    models = [train_lightgbm(data, number, parameters, seed, MAX_ROUNDS, PATIENCE, prior) for seed in seeds]
    predicted = [model.predict(inputs) for model in models]
    return np.stack(predicted).reshape(len(seeds), len(inputs), -1)
