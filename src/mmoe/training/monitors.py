"""Check before training that callbacks and schedules find the metrics that they monitor.

T tasks, E experts.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, open_dict
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from mmoe.data.batch import blank_rows
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.models.network import run_in_eval_mode
from mmoe.models.replicas import Replicas
from mmoe.tasks import default_monitor, validation_metrics
from mmoe.training.gate_statistics import GateStatistics
from mmoe.training.learner import Learner


def with_monitor(config: DictConfig, schema: Schema) -> DictConfig:
    """The configuration with values for `monitor` and `monitor_mode` where these are null.

    By default, the main metric of the main task is monitored, and the mode is what the metric needs.
    """
    monitor = config.get("monitor") or default_monitor(schema.tasks)
    larger_is_better = validation_metrics(schema.tasks).get(monitor, True)
    mode = config.get("monitor_mode") or ("max" if larger_is_better else "min")
    changed: DictConfig = config.copy()
    with open_dict(changed):
        changed.monitor, changed.monitor_mode = monitor, mode
    return changed


def check_monitor(
    monitor: str,
    mode: str | None,
    known: Mapping[str, bool | None],
    keys: tuple[str, str] = ("monitor", "monitor_mode"),
) -> None:
    """Raise UserError unless `monitor` is a known metric and `mode` (`max`, `min` or None) fits it.

    `known` says for each metric whether larger values are better; None allows both modes. The error message
    names the two configuration keys in `keys`.
    """
    if monitor not in known:
        raise UserError(f"{keys[0]}={monitor}: must be one of {', '.join(known)}")
    expected = {True: "max", False: "min", None: mode}[known[monitor]]
    if mode not in (None, expected):
        raise UserError(f"{keys[1]}={mode}: must be {expected} for {monitor}")


def check_callbacks(callbacks: Mapping[str, Any], learner: Any, schema: Schema, trainer: pl.Trainer) -> None:
    """Raise UserError if a callback monitors a metric that is never logged, or reads it too early.

    A user's own callback or learner may log any metric, so with one of these every name is accepted.
    """
    packages = {type(part).__module__.split(".")[0] for part in (*callbacks.values(), learner)}
    known = logged_metrics(learner, schema) if packages <= {"mmoe", "pytorch_lightning"} else None
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str):
            continue
        if known is not None:
            keys = (f"callbacks.{name}.monitor", f"callbacks.{name}.mode")
            check_monitor(monitor, getattr(callback, "mode", None), known, keys)
        is_default = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
        if isinstance(callback, EarlyStopping):
            option, after_train_epoch = "check_on_train_epoch_end", callback._check_on_train_epoch_end
            if after_train_epoch is None:
                after_train_epoch = is_default
        elif isinstance(callback, ModelCheckpoint):
            option, after_train_epoch = "save_on_train_epoch_end", callback._save_on_train_epoch_end
            if after_train_epoch is None and monitor.startswith("train/"):
                after_train_epoch = is_default
        else:
            continue
        if monitor.startswith("train/") and monitor != "train/loss" and not after_train_epoch:
            rule = f"must be true, because {monitor} is logged at the end of an epoch"
            raise UserError(f"callbacks.{name}.{option}: {rule}")
        if monitor.startswith("val/") and after_train_epoch and not validates_each_epoch(trainer):
            raise UserError(f"callbacks.{name}.monitor={monitor}: needs a validation in every epoch")


def validates_each_epoch(trainer: pl.Trainer) -> bool:
    """Whether there is a validation in every training epoch."""
    return bool(trainer.limit_val_batches) and trainer.check_val_every_n_epoch == 1


def logged_metrics(learner: Learner, schema: Schema) -> dict[str, bool | None]:
    """All metrics that a learner may log, and whether larger values are better; None allows both modes."""
    metrics = validation_metrics(schema.tasks)
    known: dict[str, bool | None] = {**metrics}
    if not learner.has_replicas:  # they have no training metrics
        known |= {
            f"train/{t.name}/{name}": larger for t in schema.tasks for name, larger in t.METRICS.items()
        }
    known |= dict.fromkeys(("train/loss", "epoch", "step"))
    known |= dict.fromkeys(learner.balancer.logged_names if learner.balancer else ())
    gates = run_in_eval_mode(learner, blank_rows(schema)).gates  # [..., 2, T, E]
    if gates.shape[-1]:
        statistics = GateStatistics()
        statistics.update(gates)
        known |= dict.fromkeys(statistics.summary().by_name([task.name for task in schema.tasks]))
    modules = list(learner.modules())
    has_copies = any(isinstance(module, Replicas) for module in modules)  # replicas or an ensemble
    if not has_copies and any(isinstance(module, nn.ReLU) for module in modules):
        known["val/units/dead"] = None
    return known
