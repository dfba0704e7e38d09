"""Measure the training speed."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from mmoe.data.batch import Batch


class Throughput(pl.Callback):
    """Count the rows and seconds of training steps, without start-up, validations and epoch ends."""

    def __init__(self) -> None:
        self.rows = 0
        self.batch_rows = 0  # rows in this process's largest batch
        self.seconds = 0.0
        self._started: float | None = None

    @property
    def samples_per_second(self) -> float | None:
        """Training rows of all ranks per second; None before the end of the first epoch."""
        return self.rows / self.seconds if self.seconds else None

    def on_train_batch_start(self, *_: Any) -> None:
        if self._started is None:  # at the first step, and after each stop
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        num_rows = batch.labels.shape[-2]
        self.batch_rows = max(self.batch_rows, num_rows)
        self.rows += num_rows * trainer.world_size

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
