"""What is known of a training that diverged, the step, the tasks and the rows of the batch, or that died.

B batch, N rows, T tasks, R replicas.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
from torch import Tensor

from mmoe.atomic import write
from mmoe.data.datamodule import Loader
from mmoe.data.encode import Rows, decode
from mmoe.data.schema import Schema
from mmoe.errors import UserError


class Diverged(UserError):
    """Weights or logits are no longer finite numbers.

    Args:
        epoch: from 0.
        batch: of the epoch, from 0: the first whose logits are not finite, or else the last one.
        step: of the optimizer, from 1, to which the batch belongs.
        tasks: their names.
        replica: which one, from 0; None where there are none.
    """

    def __init__(
        self, epoch: int, batch: int, step: int, tasks: Sequence[str], replica: int | None = None
    ) -> None:
        self.epoch, self.batch, self.replica = epoch, batch, replica
        of = "" if replica is None else f" of replica {replica}"
        super().__init__(
            f"training{of} diverged in step {step} (epoch {epoch + 1}, batch {batch + 1}): {', '.join(tasks)}"
            " not finite; lower the learning rate (learner.optimizer.lr)"
        )


def diverged(
    trainer: pl.Trainer, tasks: Sequence[str], batches: Sequence[Tensor], otherwise: Tensor
) -> Diverged:
    """Say where: in the first of the epoch's training batches, else after the last of them.

    Args:
        trainer: has the epoch and the steps so far.
        tasks: names.
        batches: logits [B, T] or [R, B, T] of each training batch so far.
        otherwise: which tasks are not finite if these batches all are, [T] or [R, T].
    """
    finite = [bool(batch.isfinite().all()) for batch in batches]
    last = max(len(batches) - 1, 0)
    first = finite.index(False) if False in finite else last
    step = trainer.global_step - (last - first) // trainer.accumulate_grad_batches
    bad = ~batches[first].isfinite().all(-2) if False in finite else otherwise  # [T] or [R, T]
    replica = int(bad.any(-1).nonzero()[0]) if bad.ndim == 2 else None
    names = [task for task, wrong in zip(tasks, bad.reshape(-1, len(tasks)).any(0), strict=True) if wrong]
    return Diverged(trainer.current_epoch, first, step, names, replica)


def constant(logits: Tensor, tasks: Sequence[str]) -> str | None:
    """Which task, in words, has the same logit in all of several rows, [N, T] or [R, N, T]; None if none has.

    That is what is left of a task when all units of its tower are 0 in every row: no gradient reaches them.
    """
    same = (logits.amax(-2) == logits.amin(-2)).reshape(-1, len(tasks))  # [R, T]
    if logits.shape[-2] < 2 or not same.any():
        return None
    r, t = same.nonzero()[0].tolist()
    of = f" of replica {r}" if logits.ndim == 3 else ""
    return f"the predictions of {tasks[t]}{of} are the same for all validation rows"


def save(error: Diverged, loader: Loader, schema: Schema, path: Path) -> None:
    """Write the raw rows of that batch and of the one before, whose update may have done it.

    Args:
        error: says which.
        loader: of the training rows.
        schema: of the rows.
        path: a Parquet file: column `batch` (from 1), the inputs, and the labels.
    """
    loader.set_epoch(error.epoch)
    first = max(error.batch - 1, 0)
    frames = []
    for number, rows in enumerate(islice(loader, first, error.batch + 1), first + 1):
        own = rows.labels.ndim == 3 and error.replica is not None
        frame = decode(Rows(*(tensor[error.replica] for tensor in rows)) if own else rows, schema)
        frame.insert(0, "batch", number)
        frames.append(frame)
    write(path, lambda scratch: pd.concat(frames).to_parquet(scratch, index=False))
