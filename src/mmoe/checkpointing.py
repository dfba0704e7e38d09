"""Checkpoints that a run can always go on from: whole, two deep, with all that decides what comes next."""

import logging
import math
import signal
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mmoe.atomic import write
from mmoe.checks import check_integers
from mmoe.cli import remove_if_empty
from mmoe.runs import load_checkpoint, read

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user pressed Ctrl-C, and a checkpoint of that moment is there."""


class WholeFiles(TorchCheckpointIO):
    """Write every checkpoint beside its place, then rename it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(Path(path), lambda scratch: torch.save(checkpoint, scratch))


class Last(Checkpoint):
    """Keep `last.ckpt` and, in case it is damaged, the one before as `previous.ckpt`.

    They are written at the end of each epoch, every `every_n_steps` steps, and when Ctrl-C is pressed: then
    training stops after the step and raises `Interrupted`. A second Ctrl-C stops at once. Where several
    processes train together, only the ends of epochs count, for there all are at the same step; generators
    are those of the first process.

    Args:
        dirpath: where.
        every_n_steps: optimizer steps.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 1000) -> None:
        check_integers(1, every_n_steps=every_n_steps)
        self.folder = Path(dirpath)
        self.every_n_steps = every_n_steps
        self.interrupted = self._due = False
        self._handler: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def handle(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, self._handler)

        self._handler = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._due |= bool(trainer.global_step) and trainer.global_step % self.every_n_steps == 0
        if not (self._due or self.interrupted) or trainer.world_size > 1:
            return
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # no gradient waits for others
        # Before a validation Lightning would take it for done.
        validates = trainer.is_last_batch or (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        if stepped and not validates:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGINT, self._handler)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _save(self, trainer: pl.Trainer) -> None:
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and last.exists():
            last.replace(self.folder / "previous.ckpt")
        trainer.save_checkpoint(last)
        self._due = False
        if self.interrupted:
            raise Interrupted


class Best(ModelCheckpoint):
    """`ModelCheckpoint` that knows its files again when the run folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            return value.replace(before, now, 1) if isinstance(value, str) else value

        state = {key: moved(value) for key, value in state_dict.items()}
        state["best_k_models"] = {moved(k): v for k, v in state_dict["best_k_models"].items()}
        super().load_state_dict(state)


def take_up(run: Path, made: Path, overrides: Sequence[str]) -> tuple[Path, DictConfig]:
    """The folder and the configuration of a run that is to go on; the folder that Hydra made is removed.

    Raises:
        ValueError: other overrides were given, or it is not the folder of a run that has not ended.
    """
    if len(overrides) > 1:
        others = ", ".join(o for o in overrides if not o.startswith("resume="))
        raise ValueError(f"resume={run}: goes on with the run's own configuration; leave out {others}")
    read(run)  # whose rules the configuration must keep
    if (run / "metrics.json").exists():
        raise ValueError(f"resume={run}: the run has ended, as its metrics.json says")
    remove_if_empty(made)
    folder = run.absolute()
    text = (folder / "config.yaml").read_text("utf-8").replace("${hydra:runtime.output_dir}", str(folder))
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    if (config.get("logger") or {}).get("version") == "csv":  # which would delete what it finds
        config.logger.version = f"csv_{len(list(folder.glob('csv*'))) + 1}"
    return folder, config


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder that training can go on from; None without any.

    One that is cut short or has a changed bit, by the checksums in it, is passed over with a warning. What
    was being written when the run was killed is removed.
    """
    for scratch in (folder / "checkpoints").glob(".*"):
        scratch.unlink(missing_ok=True)
    for name in ("last", "previous"):
        path = folder / f"checkpoints/{name}.ckpt"
        if not path.exists():
            continue
        try:
            check(path)
            return path
        except ValueError as error:
            log.warning("%s; the one before is taken", error)
            path.unlink()  # or it would become the one before
    log.warning("%s: no checkpoint to go on from; training begins anew", folder)
    return None


def check(path: Path) -> None:
    """Raise ValueError unless a checkpoint is whole, to the bit, and holds only tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: not a whole checkpoint ({error})") from None
    if damaged:
        raise ValueError(f"{path}: not a whole checkpoint ({damaged} has changed)")
    load_checkpoint(path)
