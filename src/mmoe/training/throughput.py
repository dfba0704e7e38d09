"""How fast training goes."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from mmoe.data.encode import Rows


class Throughput(pl.Callback):
    """Count the rows and seconds of training epochs, without validation, epochs' ends and start-up."""

    def __init__(self) -> None:
        self.rows = 0
        self.batch_rows = 0  # of the largest batch of this process
        self.seconds = 0.0
        self._started: float | None = None

    @property
    def samples_per_second(self) -> float | None:
        """Training rows of all ranks a second; None before the first epoch has ended."""
        return self.rows / self.seconds if self.seconds else None

    def on_train_batch_start(self, *_: Any) -> None:
        if self._started is None:  # as after a validation, or in an epoch that is resumed
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Rows, *_: Any
    ) -> None:
        self.batch_rows = max(self.batch_rows, batch.labels.shape[-2])
        self.rows += batch.labels.shape[-2] * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self._started is not None:
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()  # steps may still be queued
            self.seconds += time.perf_counter() - self._started
            self._started = None
