"""A callback that measures the speed of a training."""

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmoe.data.batch import Batch


class Clock(pl.Callback):
    """At the end of a fit, write its speed without the first epoch, and the time of its first step, as JSON.

    `steps_speed` counts the rows per second of training steps only; `fit_speed` includes validation,
    checkpoints and metrics.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows = self.epochs = 0
        self.training_seconds = 0.0
        self.began = self.second_epoch_began = 0.0
        self.first_step: float | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        if self.first_step is None:
            self.first_step = time.time()
        if self.epochs:
            self.rows += len(batch.labels) * trainer.world_size
        if trainer.is_last_batch and self.epochs:
            self.training_seconds += time.perf_counter() - self.began

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.epochs += 1
        if self.epochs == 1:
            self.second_epoch_began = time.perf_counter()

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        found = {"first_step": self.first_step}
        if self.rows:
            whole = time.perf_counter() - self.second_epoch_began
            found |= {"steps_speed": self.rows / self.training_seconds, "fit_speed": self.rows / whole}
        self.path.write_text(json.dumps(found))
