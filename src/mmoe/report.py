"""What a run has to say at its end: metrics, predictions, and one table.

N rows, T tasks.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit
from torch import Tensor

from mmoe.data.encode import Dataset
from mmoe.data.schema import Schema
from mmoe.metrics import METRICS

ROWS = {"official": "official rows", "sample": "bundled sample", "custom": "rows of data.dir"}


def check_monitor(monitor: str, schema: Schema) -> None:
    """Raise ValueError unless `monitor` is a metric of a validation epoch of which more is better."""
    known = [f"val/{task.name}/{name}" for task in schema.tasks for name in METRICS if name != "log_loss"]
    if monitor not in known:
        raise ValueError(f"monitor={monitor}: must be one of {', '.join(known)}")


def results(values: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, float]]]:
    """Values of `{stage}/{task}/{metric}` as dicts of stage, task and metric; of replicas the mean."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in values.items():
        stage, task, metric = key.split("/")
        if stage != "train":
            tree.setdefault(stage, {}).setdefault(task, {})[metric] = value.mean().item()
    return tree


def of_replicas(values: Mapping[str, Tensor], seed: int, epochs: Tensor) -> dict[str, Any]:
    """What metrics.json has for R replicas beside the mean: spread, and each with its seed and best epoch.

    `half_interval` is half the 95 % confidence interval of the mean (Student's t); values are [R].
    """
    count = len(epochs)
    quantile = float(stdtrit(count - 1, 0.975))
    std = {key: value.std() for key, value in values.items()}
    return {
        "replicas": count,
        "std": results(std),
        "half_interval": results({key: quantile * value / count**0.5 for key, value in std.items()}),
        "runs": [
            {"seed": seed + r, "epoch": epochs[r].item()} | results({k: v[r] for k, v in values.items()})
            for r in range(count)
        ],
    }


def predictions(dataset: Dataset, split: str, probabilities: Tensor) -> pd.DataFrame:
    """One line a row of `split`: its position in its file (from 0), labels and probabilities.

    Probabilities [N, T] give a column a task; those of replicas, [R, N, T], one a task and replica.
    """
    columns = {"row": dataset.positions[split].numpy()}
    for i, task in enumerate(dataset.schema.tasks):
        columns[f"{task.name}_label"] = dataset.splits[split].labels[:, i].numpy().astype("int8")
        if probabilities.ndim == 2:
            columns[f"{task.name}_probability"] = probabilities[:, i].numpy()
            continue
        for r, one in enumerate(probabilities):
            columns[f"{task.name}_probability_{r}"] = one[:, i].numpy()
    return pd.DataFrame(columns)


def show(folder: Path, metrics: Mapping[str, Any], schema: Schema) -> None:
    """Print the table of task by metric, and what is needed to read it."""
    table = Table(title=f"Best epoch on the {ROWS[schema.rows]}", title_justify="left")
    for name in ("task", "rows"):
        table.add_column(name)
    for name in METRICS:
        table.add_column(name.replace("_", " "), justify="right")
    for task in schema.tasks:
        for split in ("test", "val"):
            values = metrics[split][task.name]
            half = metrics["half_interval"][split][task.name] if "replicas" in metrics else {}
            cells = [f"{values[n]:.4f}" + (f" ± {half[n]:.4f}" if half else "") for n in METRICS]
            table.add_row(task.name, split, *cells)
    counts = ", ".join(f"{count:,} {split}" for split, count in schema.num_rows.items())
    speed = f"{metrics['samples_per_second']:,.0f}" if metrics["samples_per_second"] else "-"
    if "replicas" in metrics:
        first, *_, last = sorted(run["epoch"] for run in metrics["runs"])
        chosen = f"mean ± half a 95 % interval of {metrics['replicas']} replicas, epochs {first} to {last}"
    else:
        chosen = f"epoch {metrics['epoch']}"
    chosen += f" of {metrics['epochs']}"
    console = Console()
    console.print(table)
    console.print(
        f"rows: {counts}\n"
        f"{chosen}, by {metrics['monitor']}\n"
        f"{metrics['parameters']:,} parameters, {speed} samples/s, {metrics['seconds']:.0f} s in all\n"
        f"run folder: {os.path.relpath(folder)}",
        soft_wrap=True,
        highlight=False,
    )
