"""The networks of scripts/compare_tables.py: train with some settings, and predict the rows of a split.

R seeds, N rows, W outputs of a task.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from commands import compose_config
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mmoe.analysis.lightgbm_training import known_rows
from mmoe.build import build
from mmoe.data.batch import Batch, take
from mmoe.data.loader import RowLoader
from mmoe.data.splits import Dataset
from mmoe.tasks import logit_columns
from mmoe.training.lightning_speedups import flush_denormals
from mmoe.training.optimizers import build_optimizer
from mmoe.training.preparation import build_network

MIN_BATCH_SIZE, EVAL_BATCH_SIZE = 16, 8192
OWN_SETTINGS = ("steps_per_epoch", "weight_of_others")  # settings that mmoe.train does not have
Overrides = tuple[str, ...]
Predict = Callable[[Batch], np.ndarray]


@lru_cache(maxsize=16)
def encoded_rows(overrides: Overrides) -> Dataset:
    """The rows of a training with these overrides."""
    return build(compose_config(*overrides), "data").dataset  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def composed(overrides: Overrides) -> DictConfig:
    """A configuration, which the caller must not change."""
    return compose_config(*overrides)


def predict_with_networks(
    overrides: Overrides,
    model: str,
    number: int,
    settings: Mapping[str, Any],
    seeds: range,
    split: str,
    max_rows: int | None = None,
) -> np.ndarray:
    """Train networks with these seeds for task `number`, and predict a split: [R, N, W].

    The validation metric of this task alone chooses the epoch of each network. `single_task` trains on this
    task alone. With `max_rows`, at most this many training rows are used.
    """
    given = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
    encoding = tuple(f"{name}={value}" for name, value in given.items() if name.startswith("data."))
    data = limit_rows(encoded_rows((*overrides, *encoding)), max_rows)
    task = data.schema.tasks[number]
    config = composed((*overrides, f"model={model}", f"inputs={given['inputs']}")).copy()
    for name, value in given.items():
        if name.startswith(("learner.", "model.")):
            OmegaConf.update(config, name, value)
    if model == "single_task":
        data, number = rows_of_task(data, number), 0
    else:
        others = [other.name for other in data.schema.tasks if other != task]
        config.objective.task_weights = dict.fromkeys(others, settings["weight_of_others"])
    return np.stack([
        train(config, data, number, settings["steps_per_epoch"], seed)(data.splits[split]) for seed in seeds
    ])  # fmt: skip


def train(config: DictConfig, data: Dataset, number: int, steps_per_epoch: int, seed: int) -> Predict:
    """Train as mmoe.train does, and return a function that predicts task `number` [N, W] for rows.

    mmoe.train also computes the metrics of all tasks and writes checkpoints, which takes longer than the
    steps of such small networks.
    """
    task, own = data.schema.tasks[number], logit_columns(data.schema.tasks)[number]
    pl.seed_everything(seed, verbose=False)
    network = build_network(config, data.schema)
    objective = build(config, "objective", network=network, tasks=data.schema.tasks)
    optimizer = build_optimizer(build(config, "learner.optimizer"), objective)
    scheduler = build(config, "learner.scheduler")(optimizer)
    rows = data.splits["train"]
    batch_size = max(MIN_BATCH_SIZE, len(rows.labels) // steps_per_epoch)
    loader = RowLoader(network.encode_rows(rows, batch_size), batch_size, seed)

    @torch.inference_mode()
    def predict(rows: Batch) -> np.ndarray:
        network.eval()
        parts = [network(batch.levels, batch.numbers).logits for batch in RowLoader(rows, EVAL_BATCH_SIZE)]
        return task.predict(torch.cat(parts)[:, own]).numpy()  # type: ignore[no-any-return]

    labels, known = data.splits["val"].labels[:, number].numpy(), known_rows(data.splits["val"], number)
    best, waited, state = -np.inf, 0, copy.deepcopy(network.state_dict())
    for _ in range(config.trainer.max_epochs):
        network.train()
        with flush_denormals():
            for batch in loader:
                optimizer.zero_grad()
                objective(*batch).loss.backward()
                optimizer.step()
        scheduler.step()
        predicted = predict(data.splits["val"])
        value = -np.inf
        if np.isfinite(predicted).all():
            value = task.metric_values(predicted[known], labels[known])[task.main_metric]
            value *= 1 if task.METRICS[task.main_metric] else -1
        waited += 1
        if value > best:
            best, waited, state = value, 0, copy.deepcopy(network.state_dict())
        if waited >= config.callbacks.early_stopping.patience:
            break
    network.load_state_dict(state)
    return predict


def limit_rows(data: Dataset, max_rows: int | None) -> Dataset:
    """The data set with a random sample of at most `max_rows` training rows."""
    count = len(data.splits["train"].labels)
    if max_rows is None or count <= max_rows:
        return data
    kept = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:max_rows].sort().values
    return with_training_rows(data, kept)


def with_training_rows(data: Dataset, kept: Tensor) -> Dataset:
    """The data set with only the training rows whose positions are in `kept`."""
    splits = {**data.splits, "train": take(data.splits["train"], kept)}
    return replace(data, splits=splits, positions={**data.positions, "train": data.positions["train"][kept]})


def rows_of_task(data: Dataset, number: int) -> Dataset:
    """The data set with one task alone. Training rows whose label is unknown are left out."""
    splits: dict[str, Batch] = {}
    for split, rows in data.splits.items():
        own = slice(number, number + 1)
        known, weights = (None if part is None else part[:, own] for part in (rows.known, rows.weights))
        splits[split] = rows._replace(labels=rows.labels[:, own], known=known, weights=weights)
    schema = replace(data.schema, tasks=(data.schema.tasks[number],))
    kept = torch.from_numpy(known_rows(splits["train"], 0).nonzero()[0])
    return with_training_rows(Dataset(schema, splits, data.positions), kept)
