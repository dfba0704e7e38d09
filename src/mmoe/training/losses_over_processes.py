"""Weigh the losses of several processes, so that the mean of their gradients is the gradient of all rows.

DDP averages the gradients of processes, however many rows each of them has.

T tasks, R replicas.
"""

import pytorch_lightning as pl
import torch
from torch import Tensor

from mmoe.data.batch import Batch
from mmoe.training.objective import Objective, loss_weights


def label_totals(batch: Batch, objective: Objective, trainer: pl.Trainer) -> Tensor | None:
    """The weights of labels, summed over all processes and divided by the number of processes.

    These are the `totals` of an objective: [T], or [R, T] if each replica has its own rows. None: it needs
    only the rows of this process.
    """
    if trainer.world_size == 1 or not _has_weights(batch):
        return None
    _, known = objective.labels_in_loss(batch.labels, batch.known)
    weights = loss_weights(known, batch.weights)
    assert weights is not None
    reduced: Tensor = trainer.strategy.reduce(weights.sum(-2), reduce_op="sum")
    return reduced / trainer.world_size


def loss_factor_of_process(batch: Batch, trainer: pl.Trainer) -> Tensor | None:
    """The factor that weights this process's mean loss by its rows. None: it is 1.

    Without weights of labels, processes differ only in the last batch, by their number of rows.
    """
    if trainer.world_size == 1 or not trainer.is_last_batch or _has_weights(batch):
        return None
    rows = torch.tensor(float(batch.labels.shape[-2]), device=batch.labels.device)
    return rows * trainer.world_size / trainer.strategy.reduce(rows.clone(), reduce_op="sum")


def _has_weights(batch: Batch) -> bool:
    """Whether the labels of a batch have different weights in the loss."""
    return batch.known is not None or batch.weights is not None
