"""Train, restore the best epoch, and test it.

N rows, T tasks, L logits of all tasks, E experts.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from mmoe import run_folder
from mmoe.atomic import remove_if_empty, write
from mmoe.data.datamodule import DataModule, labels_of
from mmoe.data.loader import RowLoader
from mmoe.errors import USER_ERROR, UserError
from mmoe.models.network import Output
from mmoe.training import checkpoints, report
from mmoe.training.divergence import Diverged, write_batches
from mmoe.training.lightning_speedups import flush_denormals
from mmoe.training.preparation import Training


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
        last = checkpoints.newest(folder, tidy=is_rank_zero) if is_resumed else None
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
    return int(stored["epoch"]) + 1, monitor if was_chosen else None


def test(training: Training) -> None:
    """Compute validation and test metrics; limit_val_batches=0 or limit_test_batches=0 skips one."""
    trainer, data, learner = training.trainer, training.data, training.learner
    learner.metric_values.clear()
    loggers, trainer.loggers = trainer.loggers, []  # this epoch's validation is already logged
    if trainer.limit_val_batches:
        trainer.validate(learner, data, verbose=False)
    trainer.loggers = loggers
    if trainer.limit_test_batches:
        trainer.test(learner, data, verbose=False)


def test_predictions(training: Training) -> tuple[pd.DataFrame | None, Output | None]:
    """The content of predictions.parquet, and logits [N, L] and gates [N, T, E] of the test rows.

    Both are None if no row was tested. The logits and gates are also None for replicas, which keep no gates,
    and for several processes. Each of several processes has tested only some of the rows, so the first one
    predicts all of them.
    """
    learner, data = training.learner, training.data
    count = learner.num_rows.get("test", 0)
    if not count:
        return None, None
    output = None
    if training.trainer.world_size > 1:
        learner.to(training.trainer.strategy.root_device)
        predicted = predict_rows(learner, data, count)
    else:
        logits = learner.final_logits["test"]
        predicted = learner.predictions_of(logits)
        if not learner.has_replicas:
            output = Output(logits.float(), torch.cat(learner.test_gates).float())
    is_ours = isinstance(data, DataModule)
    positions = data.dataset.positions["test"][:count] if is_ours else torch.arange(count)
    labels, known = labels_of(data, "test", count)
    return report.predictions(data.schema.tasks, positions, labels, known, predicted), output


def predict_rows(learner: Any, data: Any, count: int) -> torch.Tensor:
    """Predict the first `count` test rows in this process alone."""
    is_ours = isinstance(data, DataModule)
    loader: Any = (
        RowLoader(data.dataset.splits["test"], data.eval_batch_size) if is_ours else data.test_dataloader()
    )
    batches, seen = [], 0
    for batch in loader:
        left = count - seen
        batches.append(batch.map(lambda tensor, left=left: tensor[..., :left, :]))
        seen += batches[-1].labels.shape[-2]
        if seen == count:
            break
    return learner.predict(batches)  # type: ignore[no-any-return]
