"""How fast training goes."""

import time
from typing import Any

import pytorch_lightning as pl

from mmoe.data.datamodule import RowLoader


class Throughput(pl.Callback):
    """Count the rows and seconds of training epochs, without validation, epochs' ends and start-up."""

    def __init__(self) -> None:
        self.rows = 0
        self.seconds = 0.0
        self._start: tuple[float, int] | None = None  # time and step

    @property
    def samples_per_second(self) -> float | None:
        """Training rows of all ranks a second; None before the first epoch has ended."""
        return self.rows / self.seconds if self.seconds else None

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._start = time.perf_counter(), trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self._start is None:
            return
        start, step = self._start
        loader = trainer.train_dataloader
        assert isinstance(loader, RowLoader)
        self.seconds += time.perf_counter() - start
        self.rows += min((trainer.global_step - step) * loader.global_batch, len(loader.rows.labels))
        self._start = None
