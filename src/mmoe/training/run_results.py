"""The results of a run as its files hold them: metrics.json, history.csv and predictions.parquet.

N rows, T tasks, L logits of all tasks, R replicas.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from mmoe.data.encode_labels import decode_labels
from mmoe.intervals import half_interval
from mmoe.tasks import Task, logit_columns

if TYPE_CHECKING:
    from mmoe.training.preparation import Training


def split_key(key: str) -> tuple[str, str, str]:
    """The stage, the task and the metric of `{stage}/{task}/{metric}`. A task's name may have slashes too."""
    stage, _, rest = key.partition("/")
    task, _, metric = rest.rpartition("/")
    return stage, task, metric


def nest_metrics(values: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, float]]]:
    """Nest validation and test values named `{stage}/{task}/{metric}`, averaged over replicas."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in values.items():
        stage, task, metric = split_key(key)
        if stage != "train":
            tree.setdefault(stage, {}).setdefault(task, {})[metric] = value.mean().item()
    return tree


def metrics(
    training: "Training", values: Mapping[str, Tensor], epoch: int, monitor: str | None, seconds: float
) -> dict[str, Any]:
    """The content of metrics.json.

    `values` is the result of `stages.test`, `epoch` the best epoch (from 1), `monitor` the metric that chose
    it (None if none did), and `seconds` the time since `main` began.
    """
    config = training.config
    trainer, learner, schema = training.trainer, training.learner, training.data.schema
    throughput = learner.throughput
    speed = throughput.samples_per_second
    batch_size = getattr(training.data, "batch_size", None) or throughput.batch_rows
    found = {
        "row_origin": schema.row_origin,
        "num_rows": {split: count for split, count in learner.results.num_rows.items() if split != "train"},
        "seed": config.seed,
        "monitor": monitor,
        "epoch": epoch,
        "epochs": trainer.current_epoch,
        "parameters": sum(p.numel() for p in learner.objective.parameters()) // config.replicas,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "threads": training.threads,
        "global_batch": batch_size * trainer.world_size * trainer.accumulate_grad_batches,
        "learning_rate": trainer.optimizers[0].defaults.get("lr"),
        "samples_per_second": speed and speed * trainer.world_size,
        "seconds": seconds,
        **nest_metrics(values),
    }
    if config.replicas > 1:
        found |= replica_results(values, config.seed, learner.chosen_epochs)
    return found


def replica_results(values: Mapping[str, Tensor], seed: int, epochs: Tensor) -> dict[str, Any]:
    """The part of metrics.json about R replicas: their spread, and the metrics of each. Values are [R].

    `half_interval` is half the 95 % confidence interval of the mean (Student's t).
    """
    count = len(epochs)
    std = {key: value.std() for key, value in values.items()}
    half = {key: torch.tensor(half_interval(pd.Series(value.tolist()))) for key, value in values.items()}
    return {
        "replicas": count,
        "std": nest_metrics(std),
        "half_interval": nest_metrics(half),
        "runs": [
            {"seed": seed + r, "epoch": epochs[r].item()} | nest_metrics({k: v[r] for k, v in values.items()})
            for r in range(count)
        ],
    }


def history(epochs: Sequence[tuple[int, int, Mapping[str, Tensor]]], seed: int) -> pd.DataFrame:
    """One line per validation and replica: seed, epoch, optimizer step and metrics."""
    lines = []
    for epoch, step, values in epochs:
        columns = {name: value.reshape(-1).tolist() for name, value in values.items()}
        for r, line in enumerate(zip(*columns.values(), strict=True)):
            named = dict(zip(columns, line, strict=True))
            lines.append({"seed": seed + r, "epoch": epoch, "step": step} | named)
    return pd.DataFrame(lines)


def predictions(
    tasks: Sequence[Task], positions: Tensor, labels: Tensor, known: Tensor | None, predicted: Tensor
) -> pd.DataFrame:
    """One line per row: its position in the file (from 0), and each task's label and predictions.

    Labels [N, T] that are not `known` [N, T] are missing. With replicas, predictions are [R, N, L], and every
    replica has its own columns, which end with its number. Labels [R, N, T] have such columns, too.
    """
    columns: dict[str, Any] = {"row": positions.numpy()}
    has_replicas, have_own_labels = predicted.ndim == 3, labels.ndim == 3
    labels = labels if have_own_labels else labels[None]  # [R or 1, N, T]
    masks = [None] * len(labels) if known is None else known.expand_as(labels)
    parts = [decode_labels(own, mask, tasks) for own, mask in zip(labels, masks, strict=True)]
    for task, own in zip(tasks, logit_columns(tasks), strict=True):
        for r, part in enumerate(parts):
            label = f"{task.name}_label"
            columns[f"{label}_{r}" if have_own_labels else label] = part[label]
        for r, values in enumerate(predicted if has_replicas else predicted[None]):
            for name, column in task.table(values[:, own].numpy()).items():
                columns[f"{name}_{r}" if has_replicas else name] = column
    return pd.DataFrame(columns)


def may_improve(metrics: Mapping[str, Any]) -> bool:
    """Whether more epochs may be better: the best epoch of a run on the user's own rows is the last one.

    For other rows, the experiments in conf have tuned numbers of epochs.
    """
    chosen_last = metrics["monitor"] and metrics["epoch"] == metrics["epochs"]
    return bool("replicas" not in metrics and chosen_last and metrics["row_origin"] == "custom")
