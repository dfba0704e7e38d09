"""Measure the training speed."""

import time

import torch


class Throughput:
    """Count this process's rows and seconds of training steps, without start-up, validations and epoch ends.

    It is not a callback, because Lightning would call six hooks of it in every step.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.batch_rows = 0  # rows in the largest batch
        self.seconds = 0.0
        self._started: float | None = None

    def add(self, num_rows: int) -> None:
        """Count a batch. The clock starts with the first one, and with the first one after `pause`."""
        if self._started is None:
            self._started = time.perf_counter()
        self.batch_rows = max(self.batch_rows, num_rows)
        self.rows += num_rows

    def pause(self, device: torch.device) -> None:
        """Stop the clock until the next batch."""
        if self._started is not None:
            if device.type == "cuda":
                torch.cuda.synchronize()  # steps may still be queued
            self.seconds += time.perf_counter() - self._started
            self._started = None

    @property
    def samples_per_second(self) -> float | None:
        """Training rows of this process per second; None before the first `pause`."""
        return self.rows / self.seconds if self.seconds else None
