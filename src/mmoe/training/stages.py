"""Train, restore the best epoch, and test it.

N rows, T tasks, L logits of all tasks, E experts.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from mmoe.atomic import remove_if_empty, write
from mmoe.data.batch import Batch
from mmoe.data.datamodule import DataModule, labels_of
from mmoe.data.loader import RowLoader
from mmoe.data.shards import ShardedRows
from mmoe.errors import USER_ERROR, UserError
from mmoe.models.network import Output
from mmoe.tasks import predictions_of
from mmoe.training import checkpoints, run_folder, run_results
from mmoe.training.divergence import Diverged, write_batches
from mmoe.training.lightning_speedups import flush_denormals
from mmoe.training.preparation import Training

PREDICTED_ROWS = 2**20  # predictions of about this many rows are in memory at a time


def fit(training: Training, folder: Path, is_resumed: bool) -> Path:
    """Train; a resumed run starts from its newest checkpoint.

    Returns:
        The run folder of the first process. The folders that other processes made are removed.

    Raises:
        UserError: Lightning refuses the configuration, or training diverges. A new run is removed unless it
            has trained a step.
    """
    trainer, data, learner = training.trainer, training.data, training.learner
    is_rank_zero = trainer.is_global_zero
    try:
        last, damaged = checkpoints.newest(folder) if is_resumed else (None, {})
        if is_resumed and is_rank_zero:
            checkpoints.warn_of_damaged(folder, last, damaged)
            checkpoints.remove_damaged(folder, damaged)
        with flush_denormals():
            trainer.fit(learner, data, ckpt_path=last, weights_only=True)
        if is_rank_zero:
            checkpoints.remove_requeued(folder)
        trainer.strategy.barrier()
    except (MisconfigurationException, UserError) as error:
        if not is_rank_zero:  # the first process prints the message
            raise SystemExit(USER_ERROR) from None
        if isinstance(error, Diverged) and isinstance(data, DataModule):
            path = folder / "diverged.parquet"
            write_batches(error, data.unencoded_train_loader(), data.schema, path)
            raise UserError(f"{error}; the batch's rows are in {os.path.relpath(path)}") from None
        if not is_resumed and trainer.global_step == 0:
            run_folder.forget(folder)
        if isinstance(error, UserError):
            raise
        raise UserError(f"trainer: {error}") from error
    # Hydra names a folder after the time, so every process may have made its own.
    first_folder = Path(trainer.strategy.broadcast(str(folder)))
    if folder != first_folder:
        remove_if_empty(folder)
    return first_folder


def restore_best(training: Training, folder: Path) -> tuple[int, str | None]:
    """Load the best epoch's weights into the learner, and save them as best.ckpt.

    Without validations (limit_val_batches=0), these are the last weights.

    Returns:
        The epoch, from 1, and the metric that chose it; the metric is None without validations.
    """
    trainer, learner = training.trainer, training.learner
    best = folder / checkpoints.BEST
    chosen = getattr(training.callbacks["best"], "best_model_path", "")
    if learner.has_replicas:
        learner.restore_best()
    if learner.has_replicas or not chosen:
        trainer.save_checkpoint(best)
    elif trainer.is_global_zero and Path(chosen) != best:
        write(best, lambda scratch: shutil.copyfile(chosen, scratch))
    trainer.strategy.barrier()
    stored = checkpoints.load(best)
    checkpoints.load_weights(learner, stored["state_dict"], best)
    was_chosen = bool(learner.best_epoch.any() if learner.has_replicas else chosen)
    monitor = getattr(training.callbacks["best"], "monitor", None)
    # A checkpoint that was saved after the last epoch stores an epoch number that is one too high.
    epoch = min(int(stored["epoch"]) + 1, trainer.current_epoch)
    return epoch, monitor if was_chosen else None


def test(training: Training) -> dict[str, Tensor]:
    """Compute validation and test metrics; limit_val_batches=0 or limit_test_batches=0 skips one.

    Returns:
        The values by `{stage}/{task}/{metric}`: scalars, or [R] for replicas.
    """
    trainer, data, learner = training.trainer, training.data, training.learner
    learner.results.forget_values()
    if trainer.limit_val_batches:
        with _without_loggers(trainer):  # this epoch's validation is already logged
            trainer.validate(learner, data, verbose=False)
    if trainer.limit_test_batches:
        trainer.test(learner, data, verbose=False)
    return dict(learner.results.values)


@contextmanager
def _without_loggers(trainer: pl.Trainer) -> Iterator[None]:
    loggers = trainer.loggers
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.loggers = loggers


def test_predictions(training: Training) -> tuple[Iterator[pd.DataFrame], Output | None]:
    """The content of predictions.parquet in parts, and logits [N, L] and gates [N, T, E] of the test rows.

    There are no parts if no row was tested. The logits and gates are None for replicas, which keep no gates,
    and for a precision other than float32, in which an opened run computes. They are also None if this
    process has not kept the logits of all test rows, because there are too many or because other processes
    tested some of them. The first process then predicts the rows again.
    """
    learner, data = training.learner, training.data
    count = learner.results.num_rows.get("test", 0)
    if not count:
        return iter(()), None
    if training.trainer.world_size > 1 or "test" in learner.results.running:
        learner.to(training.trainer.strategy.root_device)
        return _predict_again(learner, data, count), None
    logits = learner.results.logits["test"]
    output = None
    if not learner.has_replicas and training.trainer.precision == "32-true":
        output = Output(logits.float(), torch.cat(learner.test_gates).float())
    positions = torch.cat([positions for _, positions in _test_rows(data)])[:count]
    labels, known = labels_of(data, "test", count)
    predicted = predictions_of(data.schema.tasks, logits)
    return iter([run_results.predictions(data.schema.tasks, positions, labels, known, predicted)]), output


def _predict_again(learner: Any, data: Any, count: int) -> Iterator[pd.DataFrame]:
    """The predictions of the first `count` test rows, in parts."""
    size = getattr(data, "eval_batch_size", None)
    for rows, positions in _test_rows(data):
        left = min(count, len(positions))
        if not left:
            return
        rows = rows.map(lambda tensor, left=left: tensor[..., :left, :])  # type: ignore[misc]
        predicted = learner.predict(RowLoader(rows, size or left))
        yield run_results.predictions(data.schema.tasks, positions[:left], rows.labels, rows.known, predicted)
        count -= left


def _test_rows(data: Any) -> Iterator[tuple[Batch, Tensor]]:
    """The test rows in parts, and their positions in the source."""
    if isinstance(data, DataModule):
        rows = data.dataset.splits["test"]
        if isinstance(rows, ShardedRows):
            yield from rows.parts()
            return
        for start in range(0, rows.labels.shape[-2], PREDICTED_ROWS):
            end = start + PREDICTED_ROWS
            part = rows.map(lambda tensor, start=start, end=end: tensor[..., start:end, :])  # type: ignore[misc]
            yield part, data.dataset.positions["test"][start:end]
        return
    start = 0
    for batch in data.test_dataloader():
        end = start + batch.labels.shape[-2]
        yield batch.map(Tensor.cpu), torch.arange(start, end)
        start = end
