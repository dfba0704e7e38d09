"""Checkpoints that a run can always go on from: whole, two deep, with all that decides what comes next."""

import math
import signal
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mmoe.arguments import check_integers
from mmoe.errors import END_SIGNALS, Stopped, UserError
from mmoe.runs import save_checkpoint


class WholeFiles(TorchCheckpointIO):
    """Write every checkpoint beside its place, then rename it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(Path(path), checkpoint)


class Last(Checkpoint):
    """Keep `last.ckpt` and, in case it is damaged, the one before as `previous.ckpt`.

    They are written at the end of each epoch, every `every_n_steps` steps, and after Ctrl-C, SIGTERM (SLURM,
    Kubernetes, a shutdown) or SIGHUP: then training stops after the step and raises `Stopped`. A second
    signal stops at once. Where several processes train together, only the ends of epochs count, for there all
    are at the same step; generators are those of the first process.

    Args:
        dirpath: where.
        every_n_steps: optimizer steps.

    Raises:
        UserError: `every_n_steps` is below 1.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 1000) -> None:
        check_integers(1, every_n_steps=every_n_steps)
        self.folder = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.interrupted = 0  # the signal's number
        self._due = False
        self._saved = -1  # the step of the newest checkpoint
        self._handlers: dict[int, Any] = {}  # of before

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def handle(number: int, _: Any) -> None:
            self.interrupted = number
            self._restore_handlers()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *END_SIGNALS):
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN:  # as under nohup
                    self._handlers[number] = handler
                    signal.signal(number, handle)

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._due |= step > 0 and step % self.every_n_steps == 0 and step != self._saved
        if not (self._due or self.interrupted) or trainer.world_size > 1:
            return
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # no gradient waits for others
        # Before a validation Lightning would take it for done.
        validates = trainer.is_last_batch or (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        if stepped and not validates:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:  # any process may have got the signal
            number = torch.tensor(self.interrupted, device=trainer.strategy.root_device)
            self.interrupted = int(trainer.strategy.reduce(number, reduce_op="max"))
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()
        if self.interrupted:  # after the last checkpoint, which is that of the end
            raise Stopped(self.interrupted)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self._restore_handlers()

    def _save(self, trainer: pl.Trainer) -> None:
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and last.exists():
            last.replace(self.folder / "previous.ckpt")
        trainer.save_checkpoint(last)
        self._due, self._saved = False, trainer.global_step
        if self.interrupted:
            raise Stopped(self.interrupted)


class Best(ModelCheckpoint):
    """`ModelCheckpoint` that knows its files again when the run folder was moved.

    Lightning calls it after a step only where it is to save by steps or by time. Where several checkpoints
    are kept (`save_top_k`), a `filename` without a placeholder gets the epoch and the step, so that they are
    several files.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.save_top_k == 0:
            raise UserError("callbacks.best.save_top_k=0: must keep a checkpoint, for the best one is tested")
        if self.save_top_k != 1 and self.filename and "{" not in self.filename:
            self.filename += "-{epoch}-{step}"
        super().setup(trainer, pl_module, stage)
        if not (self._every_n_train_steps or self._train_time_interval):
            self.on_train_batch_end = None  # type: ignore[assignment,method-assign]

    @cached_property
    def state_key(self) -> str:  # Lightning asks for it at each hook
        """That of `ModelCheckpoint`, made once."""
        return super().state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            return value.replace(before, now, 1) if isinstance(value, str) else value

        state = {key: moved(value) for key, value in state_dict.items()}
        state["best_k_models"] = {moved(k): v for k, v in state_dict["best_k_models"].items()}
        super().load_state_dict(state)
