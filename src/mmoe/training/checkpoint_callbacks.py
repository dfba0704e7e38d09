"""Callbacks that write checkpoints: the last two, for resuming, and the best."""

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

from mmoe.checks.arguments import check_integers
from mmoe.errors import END_SIGNALS, Stopped, UserError
from mmoe.training import checkpoints


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically: a file appears whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoints.save(Path(path), checkpoint)


class Last(Checkpoint):
    """Save `last.ckpt`, and keep the checkpoint before it as `previous.ckpt` in case the last is damaged.

    It saves at the end of each epoch and every `every_n_steps` optimizer steps. After Ctrl-C, SIGTERM (SLURM,
    Kubernetes, a shutdown) or SIGHUP it saves after the next step that no validation follows, and raises
    `Stopped`; a second signal stops at once. With several processes it saves only at the end of epochs, where
    all are at the same step, and stores the first process's random state.

    Raises:
        ArgumentError: `every_n_steps` is below 1.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 1000) -> None:
        (self.every_n_steps,) = check_integers(1, every_n_steps=every_n_steps)
        self.folder = Path(dirpath)
        self.received_signal = 0  # the number of the signal; 0: none
        self._due = False
        self._saved = -1  # step of the newest checkpoint
        self._handlers: dict[int, Any] = {}  # the previous handlers, by signal

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def handle(number: int, _: Any) -> None:
            self.received_signal = number
            self._restore_handlers()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *END_SIGNALS):
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP
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
        if not (self._due or self.received_signal) or trainer.world_size > 1:
            return
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # A run that resumes from a checkpoint right before a validation would skip that validation.
        counts_all = trainer.check_val_every_n_epoch is None  # then Lightning counts batches across epochs
        seen = (trainer.fit_loop.epoch_loop.total_batch_idx if counts_all else batch_idx) + 1
        validates = trainer.is_last_batch or seen % (trainer.val_check_batch or math.inf) == 0
        if stepped and not validates:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:  # any process may have received the signal
            number = torch.tensor(self.received_signal, device=trainer.strategy.root_device)
            self.received_signal = int(trainer.strategy.reduce(number, reduce_op="max"))
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()
        if self.received_signal:  # after the last checkpoint was saved
            raise Stopped(self.received_signal)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self._restore_handlers()

    def _save(self, trainer: pl.Trainer) -> None:
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and last.exists():
            last.replace(self.folder / "previous.ckpt")
        best = [one for one in trainer.checkpoint_callbacks if isinstance(one, Best) and one.just_saved]
        if not (best and trainer.world_size == 1 and _link(best[0].just_saved, last)):
            trainer.save_checkpoint(last)
        self._due, self._saved = False, trainer.global_step
        if self.received_signal:
            raise Stopped(self.received_signal)


def _link(saved: str, path: Path) -> bool:
    """Give a saved checkpoint the second name `path`; false if the file system has no hard links."""
    try:
        path.hardlink_to(saved)
    except OSError:
        return False
    return True


class Best(ModelCheckpoint):
    """`ModelCheckpoint` that still finds its files when the run folder has moved.

    If `save_top_k` is not 1, it appends epoch and step to a `filename` without placeholders.

    Attributes:
        just_saved: the checkpoint that was saved at the end of this epoch, or empty. `Last` links to it,
            because it would save the same.
    """

    just_saved = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.save_top_k == 0:
            raise UserError(
                "callbacks.best.save_top_k=0: must keep a checkpoint, because the best one is tested"
            )
        if self.save_top_k != 1 and self.filename and "{" not in self.filename:
            self.filename += "-epoch{epoch}-step{step}"
            self.auto_insert_metric_name = False  # the `=` that it inserts needs quoting in a shell
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step_before = self._last_global_step_saved
        super().on_train_epoch_end(trainer, pl_module)
        is_new = self._last_global_step_saved == trainer.global_step != step_before
        self.just_saved = self._last_checkpoint_saved if is_new and not self.save_weights_only else ""

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.just_saved = ""
        if self._every_n_train_steps or self._train_time_interval is not None:
            super().on_train_batch_end(*arguments)

    @cached_property
    def state_key(self) -> str:
        """`ModelCheckpoint.state_key`, cached because Lightning reads it in every hook."""
        return super().state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old_folder, new_folder = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            return value.replace(old_folder, new_folder, 1) if isinstance(value, str) else value

        state = {key: moved(value) for key, value in state_dict.items()}
        state["best_k_models"] = {moved(k): v for k, v in state_dict["best_k_models"].items()}
        super().load_state_dict(state)
