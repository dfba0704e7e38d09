"""Find where a training diverged (step, tasks, rows), and which task has stopped learning.

B batch, N rows, T tasks, R replicas.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
from torch import Tensor

from mmoe.atomic import write
from mmoe.data.encode import decode
from mmoe.data.loader import Loader
from mmoe.data.schema import Schema
from mmoe.errors import UserError


class Diverged(UserError):
    """Weights or logits are not finite.

    Args:
        epoch: index from 0.
        batch: index in the epoch, from 0: the first batch with logits that are not finite, else the last.
        step: optimizer step of that batch, from 1.
        tasks: names of the tasks with logits that are not finite.
        replica: index from 0; None without replicas.
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


def find_divergence(
    trainer: pl.Trainer, tasks: Sequence[str], batches: Sequence[Tensor], bad_tasks: Tensor
) -> Diverged:
    """Find the epoch's first training batch with logits that are not finite.

    `batches` are the logits [B, T] or [R, B, T] of the training batches so far. If all are finite, the last
    batch is taken, and `bad_tasks` ([T] or [R, T]) says which tasks to name.
    """
    finite = [bool(batch.isfinite().all()) for batch in batches]
    last = max(len(batches) - 1, 0)
    first = finite.index(False) if False in finite else last
    step = trainer.global_step - (last - first) // trainer.accumulate_grad_batches
    bad = ~batches[first].isfinite().all(-2) if False in finite else bad_tasks  # [T] or [R, T]
    replica = int(bad.any(-1).nonzero()[0]) if bad.ndim == 2 else None
    bad = bad if replica is None else bad[replica]  # [T]
    names = [task for task, is_bad in zip(tasks, bad, strict=True) if is_bad]
    return Diverged(trainer.current_epoch, first, step, names, replica)


def describe_constant_task(logits: Tensor, tasks: Sequence[str]) -> str | None:
    """Describe a task whose logits, in [N, T] or [R, N, T], are the same in all rows; None if there is none.

    This happens when all units of a tower are 0 in every row, so no gradient reaches them.
    """
    same = (logits.amax(-2) == logits.amin(-2)).reshape(-1, len(tasks))  # [R, T]
    if logits.shape[-2] < 2 or not same.any():
        return None
    r, t = same.nonzero()[0].tolist()
    where = f" in replica {r}" if logits.ndim == 3 else ""
    return f"the predictions of {tasks[t]}{where} are the same for all validation rows"


def write_batches(error: Diverged, loader: Loader, schema: Schema, path: Path) -> None:
    """Write the raw rows of the diverged batch and the batch before it, whose update may be the cause.

    `loader` has the training rows. The Parquet file has a column `batch` (from 1), the inputs and the labels.
    """
    loader.set_epoch(error.epoch)
    first = max(error.batch - 1, 0)
    frames = []
    for number, rows in enumerate(islice(loader, first, error.batch + 1), first + 1):
        own_rows = rows.labels.ndim == 3 and error.replica is not None
        frame = decode(rows.map(lambda tensor: tensor[error.replica]) if own_rows else rows, schema)
        frame.insert(0, "batch", number)
        frames.append(frame)
    write(path, lambda scratch: pd.concat(frames).to_parquet(scratch, index=False))
