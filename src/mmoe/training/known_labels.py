"""Check before training that the known labels of each split are enough to learn from and to measure."""

import logging
from collections.abc import Collection

import torch
from torch import Tensor

from mmoe.data.batch import Batch
from mmoe.data.shards import ShardedRows
from mmoe.data.splits import Dataset
from mmoe.errors import UserError
from mmoe.metrics import GROUPED_AUROC
from mmoe.metrics.grouped_auroc import grouped_auroc

log = logging.getLogger(__name__)

FEW_VALIDATION_LABELS = 10  # with fewer, or fewer of a class, a warning is logged
LARGER_FRACTION = 0.4  # the share of validation rows that an error suggests
SPLIT_NAMES = {"train": "training", "val": "validation"}


def check_known_labels(
    dataset: Dataset, watched: Collection[str | None], fraction: float | None = None
) -> None:
    """Warn of metrics that cannot be computed from the labels of a split; these are shown as n/a.

    `watched` are the metrics, such as `val/income/auroc`, that choose the epoch or stop the training. If the
    validation rows are a `fraction` of the rows, an error advises a larger one.

    Raises:
        UserError: a watched metric cannot be computed from the training or the validation rows, or no
            training row counts for a task.
    """
    for split, rows in dataset.splits.items():
        for i, task in enumerate(dataset.schema.tasks):
            labels, number = known_labels(rows, i, with_weight=split == "train")
            if split == "train" and not number:
                rule = "must have a training row with a known label and a weight above 0"
                raise UserError(f"data.tasks.{task.name}: {rule}")
            missing = task.undefined_metrics(labels)
            is_watched = any(str(name).startswith(f"val/{task.name}/") for name in watched)
            if split == "val" and is_watched and not missing and isinstance(rows, Batch):
                few = number
                if task.probability_column and f"val/{task.name}/log_loss" not in watched:
                    few = task.count_rarest(labels.numpy())  # AUROC compares rows of the two classes
                if few < FEW_VALIDATION_LABELS:
                    what = f"only {few} validation labels{' of the rarer class' if few < number else ''}"
                    so = "so the epoch is chosen nearly by chance; validate on more rows, or change monitor"
                    log.warning("task %s: %s, %s", task.name, what, so)
            description = f"{number:,} known labels, all equal" if number else "no known label"
            # Rows in shards may be too many to be grouped here.
            has_groups = task.group_by and split != "train"
            if has_groups and isinstance(rows, Batch) and not has_mixed_group(rows, i):
                description = description if missing else f"no {task.group_by} with labels of both classes"
                missing += (GROUPED_AUROC,)
            if not missing:
                continue
            found = f"the {SPLIT_NAMES.get(split, split)} rows have {description}"
            needed = [name for name in missing if f"val/{task.name}/{name}" in watched]
            if needed and split in SPLIT_NAMES:
                is_small = split == "val" and fraction is not None and fraction < LARGER_FRACTION
                remedies = [f"'data.validation={{fraction: {LARGER_FRACTION}}}'"] if is_small else []
                if "log_loss" in task.METRICS and "log_loss" not in missing:
                    remedies.append(f"monitor=val/{task.name}/log_loss")
                hint = f"; try {' or '.join(remedies)}" if remedies else ""
                rule = f"needs different labels, but {found}{hint}"
                raise UserError(f"monitor=val/{task.name}/{needed[0]}: {rule}")
            log.warning("task %s: %s, so they have no %s", task.name, found, ", ".join(missing))


def has_mixed_group(rows: Batch, task: int) -> bool:
    """Whether the rows have a group with labels of both classes."""
    if rows.groups is None:
        return False
    kept = is_known(rows, task)
    labels = rows.labels[..., task][kept]
    return bool(grouped_auroc(labels, labels, rows.groups[..., 0][kept]).isfinite())


def is_known(rows: Batch, task: int) -> Tensor:
    """Which labels of a task are known. Shape: as a task's labels in the batch."""
    if rows.known is None:
        return torch.ones_like(rows.labels[..., task], dtype=torch.bool)
    return rows.known[..., task]


def known_labels(rows: Batch | ShardedRows, task: int, with_weight: bool) -> tuple[Tensor, int]:
    """The known labels of a task, and their number. `with_weight` leaves out rows with a weight of 0.

    For rows in shards, the labels are only the smallest and the largest one, and rows with a weight of 0 are
    always left out.
    """
    if isinstance(rows, ShardedRows):
        found = rows.label_range(task)
        return torch.tensor([found.low, found.high] if found.count else []), found.count
    is_counted = is_known(rows, task)
    if with_weight and rows.weights is not None:
        is_counted = is_counted & (rows.weights[..., task] > 0)
    labels = rows.labels[..., task][is_counted]
    return labels, len(labels)
