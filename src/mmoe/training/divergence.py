"""Find where a training diverged: step, tasks and rows.

B batch, L logits of all tasks, R replicas.
"""

import math
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
    trainer: pl.Trainer,
    logit_names: Sequence[str],
    batches: Sequence[Tensor],
    bad: Tensor,
    is_weight: bool = False,
    num_before: int = 0,
    num_after: int | None = None,
) -> Diverged:
    """Describe where training diverged: in the first training batch with logits that are not finite.

    If there is none, the fault showed up later, in validation logits or weights, or in another process. The
    error then names the last training batch, and `bad` says which tasks are affected. With `is_weight`, `bad`
    is True for all tasks of a replica with bad weights, and the message names the weights. `num_before`
    and `num_after` count the training batches of the epoch before and after `batches`. `num_after` is given
    only within a training step, and does not count the batch of that step.

    Shape:
        logit_names: the task of each logit, L names.
        batches: logits [B, L] of the epoch's training batches so far, or their means [R, 1, L] for replicas.
        bad: [L], or [R, L] for replicas.
    """
    last = len(batches) - 1
    found = next((i for i, batch in enumerate(batches) if not batch.isfinite().all()), None)
    place = last if found is None else found
    affected = bad if found is None else ~batches[found].isfinite().all(-2)  # [L] or [R, L]
    replica = int(affected.any(-1).nonzero()[0]) if affected.ndim == 2 else None
    own = affected if replica is None else affected[replica]  # [L]
    names = [task for task, is_bad in zip(logit_names, own, strict=True) if is_bad]
    if is_weight and found is None:
        names = []
    batch = max(num_before + place, 0)
    every, seen = trainer.accumulate_grad_batches, num_before + len(batches) + (num_after or 0)
    has_ended = num_after is None and trainer.is_last_batch  # the last batch of an epoch ends a step
    taken = math.ceil(seen / every) if has_ended else seen // every  # steps of this epoch
    step = trainer.global_step - taken + batch // every + 1
    return Diverged(trainer.current_epoch, batch, step, list(dict.fromkeys(names)), replica)


def write_batches(error: Diverged, loader: Loader, schema: Schema, path: Path) -> None:
    """Write the rows of the diverged batch and the batch before it, whose update may be the cause.

    The rows are decoded by `mmoe.data.encode.decode`. `loader` has the training rows. The Parquet file has a
    column `batch` (from 1), the inputs and the labels.
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
