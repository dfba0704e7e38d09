"""The results of a run: metrics, predictions, history, and the final table.

N rows, T tasks, L logits of all tasks, R replicas.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from rich.table import Table
from torch import Tensor

from mmoe.cli.console import open_console
from mmoe.data.encode_labels import decode_labels
from mmoe.data.schema import Schema
from mmoe.intervals import half_interval
from mmoe.tasks import Task, logit_columns

if TYPE_CHECKING:
    from mmoe.training.preparation import Training

ROW_ORIGINS = {
    "official": "official rows",
    "sample": "bundled sample",
    "synthetic": "generated rows",
    "custom": "given rows",
}


def nest_metrics(values: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, float]]]:
    """Nest validation and test values named `{stage}/{task}/{metric}`, averaged over replicas."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in values.items():
        stage, task, metric = key.split("/")
        if stage != "train":
            tree.setdefault(stage, {}).setdefault(task, {})[metric] = value.mean().item()
    return tree


def metrics(
    training: "Training", config: DictConfig, epoch: int, monitor: str | None, seconds: float
) -> dict[str, Any]:
    """The content of metrics.json, after the test.

    `epoch` is the best epoch (from 1), `monitor` the metric that chose it (None if none did), and `seconds`
    the time since the program started.
    """
    trainer, learner, schema = training.trainer, training.learner, training.data.schema
    throughput = learner.throughput
    speed = throughput.samples_per_second
    batch_size = getattr(training.data, "batch_size", None) or throughput.batch_rows
    found = {
        "rows": schema.rows,
        "num_rows": {split: count for split, count in learner.results.num_rows.items() if split != "train"},
        "seed": config.seed,
        "monitor": monitor,
        "epoch": min(epoch, trainer.current_epoch),
        "epochs": trainer.current_epoch,
        "parameters": sum(p.numel() for p in learner.objective.parameters()) // config.replicas,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "threads": training.threads,
        "global_batch": batch_size * trainer.world_size * trainer.accumulate_grad_batches,
        "learning_rate": trainer.optimizers[0].defaults.get("lr"),
        "samples_per_second": speed and speed * trainer.world_size,
        "seconds": seconds,
        **nest_metrics(learner.results.values),
    }
    if config.replicas > 1:
        found |= replica_results(learner.results.values, config.seed, learner.chosen_epochs)
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
    replica has its own columns, which end with its number. Labels do as well if they are [R, N, T].
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


def log_figures(loggers: Sequence[Logger], figures: Mapping[str, Any]) -> None:
    """Add the figures to TensorBoard, if the run logs to it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(name, figure, close=False)
            logger.experiment.flush()


def metric_text(value: float) -> str:
    """A metric as text; n/a if it cannot be computed."""
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def metric_tables(metrics: Mapping[str, Any], tasks: Sequence[Task]) -> list[Table]:
    """A table with a line for each task and split. Tasks with other metrics get a table of their own."""
    tables = []
    for names in dict.fromkeys(tuple(task.metric_names) for task in tasks):
        table = Table(title_justify="left")
        for column in ("task", "rows"):
            table.add_column(column)
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for task in (task for task in tasks if tuple(task.metric_names) == names):
            for split in (split for split in ("test", "val") if split in metrics):
                values = metrics[split][task.name]
                half = metrics["half_interval"][split][task.name] if "replicas" in metrics else {}
                texts = [
                    metric_text(values[n]) + (f" ± {metric_text(half[n])}" if half else "") for n in names
                ]
                table.add_row(task.name, split, *texts)
        tables.append(table)
    return tables


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Print each checkpoint's metrics with their confidence intervals."""
    title = f"{found['num_rows']:,} {found['split']} rows, {ROW_ORIGINS[found['rows']]}"
    table = Table(title=title, title_justify="left")
    for name in ("checkpoint", "epoch", "task", "metric", "value", "95 % interval"):
        table.add_column(name, justify="right" if name in ("epoch", "value") else "left")
    for line in found["checkpoints"]:
        for task, values in line["metrics"].items():
            for name, value in values.items():
                bounds = line.get("intervals", {}).get(task, {}).get(name)
                interval = " to ".join(map(metric_text, bounds)) if bounds else "-"
                label = name.replace("_", " ")
                epoch = str(line["epoch"] or "per replica")
                table.add_row(line["checkpoint"], epoch, task, label, metric_text(value), interval)
    open_console().print(table)


def show(folder: Path, metrics: Mapping[str, Any], schema: Schema) -> None:
    """Print each task's metrics, and the facts needed to interpret them."""
    tables = metric_tables(metrics, schema.tasks)
    tables[0].title = f"Best epoch on the {ROW_ORIGINS[schema.rows]}"
    seen = metrics["num_rows"]
    counts = ", ".join(
        (f"{seen[split]:,} of " if seen.get(split, count) != count else "") + f"{count:,} {split}"
        for split, count in (schema.num_rows or seen).items()
    )
    speed = f"{metrics['samples_per_second']:,.0f}" if metrics["samples_per_second"] else "-"
    if "replicas" in metrics:
        first, *_, last = sorted(run["epoch"] for run in metrics["runs"])
        chosen = f"mean ± half a 95 % interval of {metrics['replicas']} replicas, epochs {first} to {last}"
    else:
        chosen = f"epoch {metrics['epoch']}"
    chosen += f" of {metrics['epochs']}"
    is_last = "replicas" not in metrics and metrics["monitor"] and metrics["epoch"] == metrics["epochs"]
    is_short = is_last and schema.rows == "custom"  # the experiments of other rows have tuned lengths
    why = f"by {metrics['monitor']}" if metrics["monitor"] else "the last, because no validation chose one"
    shared = f" in {metrics['processes']} processes" if metrics["processes"] > 1 else ""
    threads = f"{metrics['threads']} thread{'s' if metrics['threads'] > 1 else ''}"
    seconds = f"{metrics['seconds']:.0f} s"
    rate = "-" if metrics["learning_rate"] is None else f"{metrics['learning_rate']:g}"
    console = open_console()
    for table in tables:
        console.print(table)
    console.print(
        f"rows: {counts}\n"
        f"{chosen}, {why}{'; more epochs may be better: trainer.max_epochs=...' if is_short else ''}\n"
        f"{metrics['steps']:,} steps of {metrics['global_batch']:,} rows{shared}, learning rate {rate}\n"
        f"{metrics['parameters']:,} parameters, {speed} samples/s with {threads}, {seconds} in all\n"
        f"run folder: {os.path.relpath(folder)}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
