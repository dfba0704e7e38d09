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
from torch import Tensor

from mmoe.data.encode import Dataset
from mmoe.data.schema import Schema
from mmoe.metrics import METRICS

ROWS = {"official": "official rows", "sample": "bundled sample", "custom": "rows of data.dir"}


def check_monitor(monitor: str, schema: Schema) -> None:
    """Raise ValueError unless `monitor` is a metric of a validation epoch."""
    known = [f"val/{task.name}/{name}" for task in schema.tasks for name in METRICS]
    if monitor not in known:
        raise ValueError(f"monitor={monitor}: must be one of {', '.join(known)}")


def by_task(logged: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Logged `{stage}/{task}/{metric}` values of one stage as a dict of dicts: task, then metric."""
    result: dict[str, dict[str, float]] = {}
    for key, value in logged.items():
        _, task, metric = key.split("/")
        result.setdefault(task, {})[metric] = value
    return result


def predictions(dataset: Dataset, split: str, probabilities: Tensor) -> pd.DataFrame:
    """One line a row of `split`: its position in its file (from 0), labels and probabilities [N, T]."""
    frame = pd.DataFrame({"row": dataset.positions[split].numpy()})
    for i, task in enumerate(dataset.schema.tasks):
        frame[f"{task.name}_label"] = dataset.splits[split].labels[:, i].numpy().astype("int8")
        frame[f"{task.name}_probability"] = probabilities[:, i].numpy()
    return frame


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
            table.add_row(task.name, split, *(f"{values[name]:.4f}" for name in METRICS))
    counts = ", ".join(f"{count:,} {split}" for split, count in schema.num_rows.items())
    speed = f"{metrics['samples_per_second']:,.0f}" if metrics["samples_per_second"] else "-"
    console = Console()
    console.print(table)
    console.print(
        f"rows: {counts}\n"
        f"epoch {metrics['epoch']} of {metrics['epochs']}, by {metrics['monitor']}\n"
        f"{metrics['parameters']:,} parameters, {speed} samples/s, {metrics['seconds']:.0f} s in all\n"
        f"run folder: {os.path.relpath(folder)}",
        soft_wrap=True,
        highlight=False,
    )
