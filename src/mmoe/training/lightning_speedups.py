"""What keeps Lightning's share of a training step small: docs/performance.md says what each part gave."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.profilers import PassThroughProfiler

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_NOTHING = nullcontext()


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Take numbers below the normal ones for 0, in torch's threads that begin meanwhile too.

    Adam's mean of the gradients of a rare level gets there, and a CPU is slow with them. Not for longer:
    pandas needs them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class NoProfiler(PassThroughProfiler):
    """Lightning's default profiler does nothing either, but in a new context some 50 times a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing, always the same one."""
        return _NOTHING


class ProgressBar(RichProgressBar):
    """A bar that is drawn so many times a second at most, and not by steps, which may be short.

    Args:
        interval: seconds between two drawings.
    """

    def __init__(self, interval: float = 0.1) -> None:
        super().__init__(refresh_rate=1)
        self.interval = interval
        self._drawn = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw it if it is time, and after an epoch's last step."""
        now = time.perf_counter()
        if now - self._drawn >= self.interval or trainer.is_last_batch:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class LightModule(pl.LightningModule):
    """A module that Lightning can tell the name of each hook, 40 times a step, past nn.Module's checks.

    Hooks of a step that neither it nor a callback has are None in training: Lightning passes these over.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for owner, base in [(self, pl.LightningModule), *((one, pl.Callback) for one in callbacks)]:
            for hook in STEP_HOOKS:
                if getattr(getattr(owner, hook), "__func__", None) is getattr(base, hook):
                    object.__setattr__(owner, hook, None)
