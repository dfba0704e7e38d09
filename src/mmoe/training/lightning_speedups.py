"""Reduce Lightning's share of a training step; docs/performance.md has the gain of each part."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import (
    CustomTimeColumn,
    ProcessingSpeedColumn,
    RichProgressBarTheme,
)
from pytorch_lightning.profilers import PassThroughProfiler
from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

NO_CONTEXT = nullcontext()


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal floats to zero, in this thread and in threads that torch starts meanwhile.

    Adam's running means for rare levels become denormal, which is slow on CPU. The setting ends with the
    context because pandas needs denormals.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class NoProfiler(PassThroughProfiler):
    """Lightning's default profiler without its roughly 50 new context managers per step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return NO_CONTEXT


class SpeedColumn(ProcessingSpeedColumn):
    """Steps a second; nothing if a stage was too short to measure them."""

    def render(self, task: Task) -> RenderableType:
        return super().render(task) if task.speed else Text()


class ProgressBar(RichProgressBar):
    """A progress bar that is redrawn at most every `interval` seconds, because steps can be very short."""

    def __init__(self, interval: float = 0.1) -> None:
        theme = RichProgressBarTheme(metrics_text_delimiter="\n")  # two metrics are too long for one line
        # Lightning redraws the bar in a thread that wakes up this often per second. Each stage of a training
        # waits at its end for the thread to wake up once more.
        super().__init__(refresh_rate=100, theme=theme)
        self.interval = interval
        self._drawn = 0.0

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """Lightning's columns, changed so that they fit on one line of a terminal of 80 columns."""
        columns = []
        for column in super().configure_columns(trainer):
            if isinstance(column, BarColumn):
                column.bar_width = None  # the bar gets the width that the other columns leave
            if isinstance(column, CustomTimeColumn):  # the elapsed and the remaining time
                column = TimeRemainingColumn(compact=True)
            elif isinstance(column, ProcessingSpeedColumn):
                column = SpeedColumn(style=column.style)
            columns.append(column)
        return columns

    def _get_train_description(self, current_epoch: int) -> str:
        """Count epochs from 1, as the reports do. Lightning, whose method this is, counts from 0."""
        last = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}" + (f"/{last}" if last and last > 0 else "")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if now - self._drawn >= self.interval or trainer.is_last_batch:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class LightModule(pl.LightningModule):
    """A LightningModule on which Lightning spends less time in each step and for each logged value."""

    def log_epoch(self, values: Mapping[str, Tensor], shown: str = "") -> None:
        """Log scalars at the end of an epoch. The progress bar shows the one named `shown`.

        In training, this does what Lightning's `log` does at the end of an epoch, but without a torchmetrics
        object for each value, which takes 1 ms.
        """
        trainer = self.trainer
        if trainer.state.fn != "fit":  # Trainer.validate and Trainer.test return what `log` logs
            for name, value in values.items():
                self.log(name, value, prog_bar=name == shown)
            return
        trainer.callback_metrics.update(values)
        if trainer.sanity_checking:
            return
        trainer.logged_metrics.update(values)
        if shown in values:
            trainer.progress_bar_metrics[shown] = values[shown].item()
        scalars = {name: value.item() for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**scalars, "epoch": trainer.current_epoch}, step=trainer.global_step)
            logger.save()

    def __setattr__(self, name: str, value: Any) -> None:
        """Skip nn.Module's checks when Lightning stores the name of the current hook, 40 times per step."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients, without the profiler's context that torch's method opens."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
