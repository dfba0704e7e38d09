"""Build and check the learning-rate schedule of a training."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from mmoe.errors import UserError

CHECK_STEPS = 1000  # length of a schedule that is built only to check its arguments


class Schedule:
    """A learning-rate schedule in the form that Lightning expects.

    Args:
        make: builds the schedule from the optimizer; None keeps the learning rate. If an argument is the text
            `total_steps`, it becomes the number of optimizer steps in the training.
        interval: `step` or `epoch`; None means `step` for OneCycleLR and CyclicLR, else `epoch`.
        frequency: for `epoch`, the schedule advances after this many epochs. For `step`, it advances after an
            optimizer step if the number of the epoch's batches so far is a multiple of this.
        monitor: the validation metric that ReduceLROnPlateau follows.
        metrics: names of the validation metrics, and whether larger values are better.
    """

    def __init__(
        self,
        make: Callable[..., LRScheduler] | None,
        interval: str | None,
        frequency: int,
        monitor: str,
        metrics: Mapping[str, bool],
    ) -> None:
        self.make: Any = make
        self.interval, self.frequency, self.monitor, self.metrics = interval, frequency, monitor, metrics

    @property
    def follows_validations(self) -> bool:
        """Whether the schedule is a ReduceLROnPlateau, which needs validation metrics."""
        func = getattr(self.make, "func", None)
        return isinstance(func, type) and issubclass(func, ReduceLROnPlateau)

    def configure(self, optimizer: torch.optim.Optimizer, trainer: pl.Trainer | None) -> dict[str, Any]:
        """The return value of `configure_optimizers`. Without a trainer, `_check_length` is skipped."""
        if self.make is None:
            return {"optimizer": optimizer}
        scheduler = self.build(optimizer, trainer)
        is_by_step = isinstance(scheduler, OneCycleLR | CyclicLR)
        interval = self.interval or ("step" if is_by_step else "epoch")
        if trainer is not None and isinstance(scheduler, OneCycleLR):
            self._check_length(scheduler, interval, trainer)
        how = {"interval": interval, "frequency": self.frequency, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **how}}

    def build(self, optimizer: torch.optim.Optimizer, trainer: pl.Trainer | None) -> Any:
        """Build the schedule; without a trainer, `total_steps` means `CHECK_STEPS`.

        Raises:
            UserError: the schedule refuses its arguments.
        """
        make = self.make
        if isinstance(make, partial) and "total_steps" in make.keywords.values():
            steps = trainer.estimated_stepping_batches if trainer else CHECK_STEPS
            if steps == float("inf"):
                raise UserError("learner.scheduler: total_steps needs a trainer.max_epochs or max_steps")
            given = {name: steps if v == "total_steps" else v for name, v in make.keywords.items()}
            make = partial(make.func, *make.args, **given)
        if self.follows_validations:
            if self.monitor not in self.metrics:
                raise UserError(f"learner.monitor={self.monitor}: must be one of {', '.join(self.metrics)}")
            mode = "max" if self.metrics[self.monitor] else "min"
            if make.keywords.get("mode", mode) != mode:
                raise UserError(f"learner.scheduler.mode: must be {mode} for {self.monitor}")
            if self.interval == "step":
                raise UserError("learner.interval=step: ReduceLROnPlateau follows validations; leave it out")
            make = partial(make, mode=mode)
        try:
            return make(optimizer)
        except (ValueError, TypeError) as error:
            raise UserError(f"learner.scheduler: {error}") from error

    def _check_length(self, scheduler: OneCycleLR, interval: str, trainer: pl.Trainer) -> None:
        """Raise UserError if the schedule is shorter than the training; torch fails after its last step."""
        steps = trainer.estimated_stepping_batches
        if steps == math.inf:
            raise UserError("learner.scheduler: OneCycleLR needs a trainer.max_epochs or max_steps")
        epochs = trainer.max_epochs or 0  # -1 without a limit
        if interval == "epoch" and epochs > 0:
            steps = epochs
        elif interval == "epoch":
            trainer.fit_loop.setup_data()  # counts the batches of an epoch
            steps //= math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        count = steps // self.frequency
        if interval == "step" and self.frequency > 1 and epochs > 0:
            # Lightning counts batches anew in each epoch, and its last batch ends a step.
            batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
            in_epoch = batches // math.lcm(self.frequency, accumulated)
            in_epoch += batches % self.frequency == 0 and batches % accumulated != 0
            count = min(count, in_epoch * epochs)
        if count > scheduler.total_steps:
            rule = f"must be at least {count}, because the training advances it that many times"
            raise UserError(f"learner.scheduler.total_steps={scheduler.total_steps}: {rule}")
