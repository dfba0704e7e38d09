"""Check before training that every monitored metric is logged.

T tasks, E experts.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.training.gate_statistics import GateSummary, blank_rows
from mmoe.training.learner import Learner
from mmoe.training.tasks import validation_metrics


def check_monitor(
    monitor: str,
    mode: str | None,
    known: Mapping[str, bool | None],
    keys: tuple[str, str] = ("monitor", "monitor_mode"),
) -> None:
    """Raise UserError unless `monitor` is a known metric, and `mode` its direction.

    Args:
        monitor: name of a metric.
        mode: `max`, `min`, or None where there is none.
        known: by name, whether more is better; None where neither is.
        keys: of the configuration, for the error.
    """
    if monitor not in known:
        raise UserError(f"{keys[0]}={monitor}: must be one of {', '.join(known)}")
    right = {True: "max", False: "min", None: mode}[known[monitor]]
    if mode not in (None, right):
        raise UserError(f"{keys[1]}={mode}: must be {right} for {monitor}")


def check_callbacks(callbacks: Mapping[str, Any], learner: Any, schema: Schema, trainer: pl.Trainer) -> None:
    """Raise UserError if a callback monitors a metric that does not exist yet when it reads it.

    Metrics that callbacks or a learner of the user may log are not known; where there is such a one, any name
    passes.
    """
    ours = ("mmoe", "pytorch_lightning")
    every = [*callbacks.values(), learner]
    known = logged(learner, schema) if all(type(x).__module__.split(".")[0] in ours for x in every) else None
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str):
            continue
        if known is not None:
            keys = (f"callbacks.{name}.monitor", f"callbacks.{name}.mode")
            check_monitor(monitor, getattr(callback, "mode", None), known, keys)
        if isinstance(callback, EarlyStopping):
            option, after_training = "check_on_train_epoch_end", callback._check_on_train_epoch_end
            if after_training is None:  # as Lightning decides it
                after_training = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
        elif isinstance(callback, ModelCheckpoint):
            option, after_training = "save_on_train_epoch_end", callback._save_on_train_epoch_end
        else:
            continue
        if monitor.startswith("train/") and not after_training:
            raise UserError(
                f"callbacks.{name}.{option}: must be true, because {monitor} is known after an epoch"
            )
        if monitor.startswith("val/") and after_training and not validates_each_epoch(trainer):
            raise UserError(f"callbacks.{name}.monitor={monitor}: not every epoch is validated")


def validates_each_epoch(trainer: pl.Trainer) -> bool:
    """Whether each training epoch is followed by a validation."""
    return bool(trainer.limit_val_batches) and trainer.check_val_every_n_epoch == 1


def logged(learner: Learner, schema: Schema) -> dict[str, bool | None]:
    """The names of all metrics that a learner logs, and whether more is better; None where neither is."""
    metrics = validation_metrics(schema.tasks)
    known: dict[str, bool | None] = {**metrics}
    known |= {f"train/{name.removeprefix('val/')}": more for name, more in metrics.items()}
    known |= dict.fromkeys(("train/loss", "epoch", "step"))
    is_training = learner.training
    with torch.inference_mode():
        gates = learner.eval()(blank_rows(schema)).gates  # [..., 2, T, E]
    learner.train(is_training)
    if gates.shape[-1]:
        num_tasks, num_experts = gates.shape[-2:]
        zeros = torch.zeros(num_tasks)
        summary = GateSummary(
            torch.zeros(num_tasks, num_experts), zeros, zeros, torch.zeros(num_tasks, num_tasks)
        )
        known |= dict.fromkeys(summary.by_name([task.name for task in schema.tasks]))
    if not learner.stacked_dims and any(isinstance(module, nn.ReLU) for module in learner.modules()):
        known["val/units/dead"] = None
    return known
