"""Build everything a training needs, and check it before the first step."""

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from mmoe.arguments import check_integers, check_seeds
from mmoe.build import build, build_callbacks, build_learner, build_loggers
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.training.checkpoint_callbacks import AtomicCheckpointIO
from mmoe.training.gate_statistics import blank_rows
from mmoe.training.monitors import check_callbacks, check_monitor, validates_each_epoch
from mmoe.training.tasks import validation_metrics
from mmoe.training.throughput import Throughput

TRAINER_MINIMUMS = {  # the least value of each integer option
    "max_epochs": -1, "max_steps": -1, "min_epochs": 0, "min_steps": 0, "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
}  # fmt: skip
RESERVED_TRAINER_KEYS = ("callbacks", "logger", "plugins", "default_root_dir")  # mmoe sets these
REPLACED_BY_REPLICAS = ("best", "early_stopping")  # callbacks whose work `ReplicaLearner` does itself


class Training(NamedTuple):
    """Everything a training needs. `callbacks` also has the callbacks that replicas replace."""

    trainer: pl.Trainer
    data: Any
    learner: Any
    callbacks: dict[str, Any]
    loggers: list[Any]
    throughput: Throughput


def build_trainer(
    config: DictConfig, folder: Path
) -> tuple[pl.Trainer, dict[str, Any], list[Any], Throughput]:
    """Build the trainer of a run folder, its callbacks by name, its loggers and its throughput meter.

    Raises:
        UserError: an option is outside its range.
    """
    check_seeds(seed=config.seed)
    check_integers(1, replicas=config.replicas)
    check_seeds(**{"seed + replicas - 1": config.seed + config.replicas - 1})
    callbacks, loggers, throughput = build_callbacks(config), build_loggers(config), Throughput()
    for key, least in TRAINER_MINIMUMS.items():
        if config.trainer.get(key) is not None:
            check_integers(least, **{f"trainer.{key}": config.trainer[key]})
    for key in RESERVED_TRAINER_KEYS:
        if key in config.trainer:
            raise UserError(f"trainer.{key}: is set by mmoe; leave it out")
    replaced = REPLACED_BY_REPLICAS if config.replicas > 1 else ()
    trainer = build(
        config,
        "trainer",
        callbacks=[*(c for name, c in callbacks.items() if name not in replaced), throughput],
        logger=loggers or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )
    return trainer, callbacks, loggers, throughput


def prepare(config: DictConfig, folder: Path) -> Training:
    """Build everything for a training in a run folder, and check that the parts fit together.

    Raises:
        UserError: an option is outside its range, or would make the training fail later.
    """
    trainer, callbacks, loggers, throughput = build_trainer(config, folder)
    if trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches=0: must be above 0, because nothing would be trained")
    data = build(config, "data")
    check_data_module(data, config.data._target_, trainer)
    check_monitor(config.monitor, config.monitor_mode, validation_metrics(data.schema.tasks))
    learner = build_learner(config, data.schema)
    learner.check_optimizer()
    if learner.schedule.follows_validations and not validates_each_epoch(trainer):
        raise UserError("learner.scheduler: ReduceLROnPlateau needs a validation in every epoch")
    check_model_output(learner, data.schema)
    check_callbacks(callbacks, learner, data.schema, trainer)
    return Training(trainer, data, learner, callbacks, loggers, throughput)


def check_data_module(data: Any, target: str, trainer: pl.Trainer) -> None:
    """Raise UserError if a data module, perhaps the user's own, lacks a schema or a dataloader."""
    if not isinstance(getattr(data, "schema", None), Schema):
        raise UserError(f"data._target_={target}: its data module must have a schema")
    for name, limit in (("val", trainer.limit_val_batches), ("test", trainer.limit_test_batches)):
        hook = f"{name}_dataloader"
        if limit and getattr(type(data), hook) is getattr(pl.LightningDataModule, hook):
            raise UserError(
                f"data._target_={target}: must have a {hook}, or give trainer.limit_{name}_batches=0"
            )


@torch.inference_mode()
def check_model_output(learner: Any, schema: Schema) -> None:
    """Raise UserError unless a model, perhaps the user's own, returns logits and gates."""
    rows, num_tasks = blank_rows(schema), len(schema.tasks)
    network = getattr(learner.objective, "network", None)  # None for replicas
    if network is None:
        return
    was_training = network.training
    output = network.eval()(rows.levels, rows.numbers)
    network.train(was_training)
    shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in output]
    good = len(shapes) == 2 and shapes[0] == [len(rows.levels), num_tasks] and shapes[1][:-1] == shapes[0]
    if not isinstance(output, tuple) or not good:
        name = type(network.model).__name__
        raise UserError(
            f"model={name}: must return logits [B, {num_tasks}] and gates [B, {num_tasks}, E], as"
            f" mmoe.Output; for {len(rows.levels)} rows it returns {shapes}"
        )
