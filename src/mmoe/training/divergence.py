"""Find where a training diverged: step, tasks and rows.

B batch, L logits of all tasks, R replicas.
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
        tasks: names of the tasks with logits that are not finite; empty if only weights are not finite.
        replica: index from 0; None without replicas.
    """

    def __init__(
        self, epoch: int, batch: int, step: int, tasks: Sequence[str], replica: int | None = None
    ) -> None:
        self.epoch, self.batch, self.replica = epoch, batch, replica
        of = "" if replica is None else f" of replica {replica}"
        what = f"the logits of {', '.join(tasks)}" if tasks else "the weights"
        super().__init__(
            f"training{of} diverged in step {step} (epoch {epoch + 1}, batch {batch + 1}): {what} are not"
            " finite; lower the learning rate (learner.optimizer.lr)"
        )


def find_divergence(
    trainer: pl.Trainer, tasks: Sequence[str], batches: Sequence[Tensor], bad: Tensor, is_weight: bool = False
) -> Diverged:
    """Find the epoch's first training batch with logits that are not finite.

    `tasks` names the task of each logit. `batches` are the logits [B, L] of the training batches so far, or
    their means [R, 1, L] for replicas. If all are finite, the last batch is taken. `bad` ([L] or [R, L]) then
    says which validation logits are not finite or, with `is_weight`, which replicas have such weights.
    """
    finite = [bool(batch.isfinite().all()) for batch in batches]
    last = max(len(batches) - 1, 0)
    first = finite.index(False) if False in finite else last
    step = trainer.global_step - (last - first) // trainer.accumulate_grad_batches
    if False in finite:
        bad, is_weight = ~batches[first].isfinite().all(-2), False  # [L] or [R, L]
    replica = int(bad.any(-1).nonzero()[0]) if bad.ndim == 2 else None
    bad = bad if replica is None else bad[replica]  # [L]
    names = [task for task, is_bad in zip(tasks, bad, strict=True) if is_bad and not is_weight]
    return Diverged(trainer.current_epoch, first, step, list(dict.fromkeys(names)), replica)


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
