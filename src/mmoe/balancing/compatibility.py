"""Check that a balancing strategy can work in a training, and warn where it has no effect."""

import logging
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from mmoe.balancing.strategies import Constant
from mmoe.errors import UserError
from mmoe.tasks import Task

log = logging.getLogger(__name__)


def check_balance(config: DictConfig, learner: Any, tasks: Sequence[Task], trainer: pl.Trainer) -> None:
    """Raise UserError if the strategy of a training cannot work; warn if it has no effect."""
    balancer = getattr(learner, "balancer", None)
    if balancer is None:
        return
    strategy = balancer.strategies[0]
    weights = dict(config.objective.get("task_weights") or {})
    unused = [name for name, weight in weights.items() if not weight]
    if unused and not isinstance(strategy, Constant):
        rule = "must be above 0 for a balancing strategy; leave the task out of data.tasks instead"
        raise UserError(f"objective.task_weights.{unused[0]}=0: {rule}")
    negative = [task for task in tasks if task.loss_may_be_negative]
    if strategy.needs_positive_losses and negative:
        task = f"task {negative[0].name} ({negative[0].kind})"
        rule = f"needs losses above 0, and the loss of {task} may be negative"
        raise UserError(f"balance: {strategy.name} {rule}")
    if not (balancer.aggregates or balancer.measure_every):
        return
    what = f"balance: {strategy.name}" if balancer.aggregates else "balance.measure_every"
    if config.get("compile"):
        raise UserError(f"{what} needs the gradient of each task; leave out compile=true")
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        name = type(trainer.strategy).__name__
        raise UserError(f"{what} needs all gradients in one process; trainer.strategy={name} divides them")
    if trainer.world_size > 1 and balancer.sparse:
        rule = "cannot average the sparse gradients of learned vectors over processes; use one process"
        raise UserError(f"{what} {rule}")
    if trainer.precision == "16-mixed":
        rule = "cannot scale losses as trainer.precision=16-mixed does; use bf16-mixed"
        raise UserError(f"{what} {rule}")
    if balancer.aggregates and balancer.shares_nothing:
        log.warning("balance: %s has no effect, because the tasks share no weights", strategy.name)
