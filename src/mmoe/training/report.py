"""The results of a run: metrics, predictions, history, and the final table.

N rows, T tasks.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmoe.data.schema import Schema, Task
from mmoe.intervals import half_interval
from mmoe.training.tasks import METRICS, prediction_column

if TYPE_CHECKING:
    from mmoe.training.preparation import Training

ROW_ORIGINS = {
    "official": "official rows",
    "sample": "bundled sample",
    "synthetic": "generated rows",
    "custom": "rows of data.dir",
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
        "num_rows": {split: count for split, count in learner.num_rows.items() if split != "train"},
        "seed": config.seed,
        "monitor": monitor,
        "epoch": min(epoch, trainer.current_epoch),
        "epochs": trainer.current_epoch,
        "parameters": sum(p.numel() for p in learner.objective.parameters()) // config.replicas,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "global_batch": batch_size * trainer.world_size * trainer.accumulate_grad_batches,
        "learning_rate": trainer.optimizers[0].defaults.get("lr"),
        "samples_per_second": speed and speed * trainer.world_size,
        "seconds": seconds,
        **nest_metrics(learner.metric_values),
    }
    if config.replicas > 1:
        found |= replica_results(learner.metric_values, config.seed, learner.chosen_epochs)
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


def predictions(tasks: Sequence[Task], positions: Tensor, labels: Tensor, predicted: Tensor) -> pd.DataFrame:
    """One line per row: its position in the file (from 0), and each task's label and prediction.

    With replicas, predictions are [R, N, T] and have one column per task and replica. Labels do as well if
    each replica has its own rows.
    """
    columns = {"row": positions.numpy()}
    for i, task in enumerate(tasks):
        for name, values in ((f"{task.name}_label", labels), (prediction_column(task), predicted)):
            dtype = "int8" if values is labels and task.is_binary else None
            parts = {name: values} if values.ndim == 2 else {f"{name}_{r}": v for r, v in enumerate(values)}
            columns |= {key: part[:, i].numpy().astype(dtype) for key, part in parts.items()}
    return pd.DataFrame(columns)


def log_figures(loggers: Sequence[Logger], figures: Mapping[str, Any]) -> None:
    """Add the figures to TensorBoard, if the run logs to it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(name, figure, close=False)
            logger.experiment.flush()


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Print each checkpoint's metrics with their confidence intervals."""
    title = f"{found['num_rows']:,} {found['split']} rows, {ROW_ORIGINS[found['rows']]}"
    table = Table(title=title, title_justify="left")
    for name in ("checkpoint", "epoch", "task", "metric", "value", "95 % interval"):
        table.add_column(name, justify="right" if name in ("epoch", "value") else "left")
    for line in found["checkpoints"]:
        for task, values in line["metrics"].items():
            for name, value in values.items():
                low, high = line["intervals"][task][name] if "intervals" in line else (None, None)
                interval = "-" if low is None else f"{low:.4f} to {high:.4f}"
                label = name.replace("_", " ")
                epoch = str(line["epoch"] or "per replica")
                table.add_row(line["checkpoint"], epoch, task, label, f"{value:.4f}", interval)
    Console().print(table)


def show(folder: Path, metrics: Mapping[str, Any], schema: Schema) -> None:
    """Print each task's metrics, and the facts needed to interpret them."""
    table = Table(title=f"Best epoch on the {ROW_ORIGINS[schema.rows]}", title_justify="left")
    for name in ("task", "rows"):
        table.add_column(name)
    names = list(dict.fromkeys(name for task in schema.tasks for name in METRICS[task.kind]))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    splits = [split for split in ("test", "val") if split in metrics]
    for task in schema.tasks:
        for split in splits:
            values = metrics[split][task.name]
            half = metrics["half_interval"][split][task.name] if "replicas" in metrics else {}
            texts = {n: f"{v:.4f}" + (f" ± {half[n]:.4f}" if half else "") for n, v in values.items()}
            cells = [texts.get(name, "-") for name in names]
            table.add_row(task.name, split, *cells)
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
    why = f"by {metrics['monitor']}" if metrics["monitor"] else "the last, because no validation chose one"
    shared = f" in {metrics['processes']} processes" if metrics["processes"] > 1 else ""
    rate = "-" if metrics["learning_rate"] is None else f"{metrics['learning_rate']:g}"
    console = Console()
    console.print(table)
    console.print(
        f"rows: {counts}\n"
        f"{chosen}, {why}\n"
        f"{metrics['steps']:,} steps of {metrics['global_batch']:,} rows{shared}, learning rate {rate}\n"
        f"{metrics['parameters']:,} parameters, {speed} samples/s, {metrics['seconds']:.0f} s in all\n"
        f"run folder: {os.path.relpath(folder)}",
        soft_wrap=True,
        highlight=False,
    )
