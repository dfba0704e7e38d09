"""How training went, and how good the probabilities are: tables of what is in a run folder's files."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from mmoe import runs
from mmoe.data.schema import Task
from mmoe.errors import UserError
from mmoe.training import report


def training_curves(folder: Path | str) -> pd.DataFrame:
    """The validation metrics of every epoch (and replica, by its seed): the run's history.csv."""
    return runs.read_frame(Path(folder), "history.csv")


def roc(folder: Path | str, replica: int | None = None) -> dict[str, pd.DataFrame]:
    """By binary task `false_positive_rate`, `true_positive_rate` and `threshold` over the test rows."""
    found = {}
    for task, probability, label in _binary(folder, replica):
        x, y, threshold = binary_roc(torch.tensor(probability), torch.tensor(label))
        columns = {"false_positive_rate": x, "true_positive_rate": y, "threshold": threshold}
        found[task.name] = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    return found


def precision_recall(folder: Path | str, replica: int | None = None) -> dict[str, pd.DataFrame]:
    """By binary task the curve of the test rows: `recall`, `precision`, `threshold` (nan at recall 0)."""
    found = {}
    for task, probability, label in _binary(folder, replica):
        p, r, threshold = binary_precision_recall_curve(torch.tensor(probability), torch.tensor(label))
        threshold = torch.cat([threshold, threshold.new_full((1,), torch.nan)])
        columns = {"recall": r, "precision": p, "threshold": threshold}
        found[task.name] = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    return found


def calibration(folder: Path | str, bins: int = 10, replica: int | None = None) -> dict[str, pd.DataFrame]:
    """By binary task, for `bins` groups of test rows of rising probability: `predicted`, `observed`, `rows`.

    `predicted` is the mean probability of a group, `observed` its share of positive labels.
    """
    found = {}
    for task, probability, label in _binary(folder, replica):
        group = np.empty(len(label), np.int64)
        group[np.argsort(probability, kind="stable")] = np.arange(len(label)) * bins // len(label)
        frame = pd.DataFrame({"predicted": probability, "observed": label}).groupby(group).mean()
        found[task.name] = frame.assign(rows=np.bincount(group, minlength=bins)[frame.index])
    return found


def _binary(folder: Path | str, replica: int | None) -> list[tuple[Task, np.ndarray, np.ndarray]]:
    """Probabilities and labels of the test rows of each binary task, from predictions.parquet."""
    config, schema = runs.read(Path(folder), ())
    runs.check_replica(config.replicas, replica)
    frame = runs.read_frame(Path(folder), "predictions.parquet")
    end = "" if replica is None else f"_{replica}"
    tasks = [task for task in schema.tasks if task.is_binary]
    if not tasks:
        raise UserError(f"{folder}: has no binary task")
    found = []
    for task in tasks:
        label = f"{task.name}_label"
        labels = frame[label if label in frame else f"{label}{end}"]
        found.append((task, frame[f"{report.column(task)}{end}"].to_numpy(), labels.to_numpy(np.int64)))
    return found
