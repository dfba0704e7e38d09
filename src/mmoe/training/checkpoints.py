"""Checkpoint files: write, find, check and read them."""

import logging
import zipfile
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.atomic import remove_abandoned, write
from mmoe.checks.arguments import is_number
from mmoe.errors import UserError, first_line, is_disk_error

log = logging.getLogger(__name__)

FOLDER_BIT = 0x10  # marks a folder in a zip file; torch skips such an entry and never fills its tensor
BEST = "checkpoints/best.ckpt"  # in the run folder
REQUEUED = "hpc_ckpt_*.ckpt"  # Lightning saves this file before SLURM requeues a job


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""

    def save_to(scratch: Path) -> None:
        try:
            with scratch.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch hides the operating system's error behind its own
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    write(path, save_to)


def load(path: Path) -> dict[str, Any]:
    """Verify a checkpoint's checksums and load it to the CPU.

    Raises:
        UserError: the file is damaged, or holds more than tensors and plain values, such as code to run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()  # torch ignores the checksums
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER_BIT]
        damaged = [changed] if changed else folders
        checkpoint: Any = None
        if not damaged:  # memory-mapped, because it may not fit in the free memory
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile and torch may raise anything for a damaged file
        if is_disk_error(error):
            raise
        why = first_line(error)
        raise UserError(f"{path}: damaged, or holds more than tensors and plain values ({why})") from None
    if damaged:
        raise UserError(f"{path}: damaged ({damaged[0]} has changed)")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: not a checkpoint of a training")
    return checkpoint


def find(folder: Path, name: str) -> list[Path]:
    """Find the checkpoint `name` in a run folder, or with `all` every checkpoint, sorted by name.

    Raises:
        UserError: there is none.
    """
    files = sorted((folder / "checkpoints").glob("[!.]*.ckpt"))
    chosen = [path for path in files if name in ("all", path.stem)]
    if not chosen:
        known = ", ".join(path.stem for path in files) or "none"
        raise UserError(f"checkpoint={name}: must be all or one of {folder}/checkpoints: {known}")
    return chosen


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights of the checkpoint at `path` into a module.

    Raises:
        UserError: the weights do not fit the module.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the network of config.yaml and schema.json; {error}") from None


def network_weights(
    checkpoint: dict[str, Any], network: nn.Module, replicas: int, replica: int | None
) -> dict[str, Tensor]:
    """The weights of `network` in a checkpoint. With several `replicas`, `replica` selects one."""
    check_replica(replicas, replica)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    prefix = "objective.network." if replica is None else "objective.stacked.network."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if replica is not None:
        own = {name: weight.ndim for name, weight in network.state_dict().items()}
        is_stacked = {k: v.ndim > own.get(k, v.ndim) for k, v in weights.items()}  # most buffers are shared
        weights = {k: v[replica].clone() if is_stacked[k] else v for k, v in weights.items()}
    return weights


def check_replica(replicas: int, replica: int | None) -> None:
    """Raise UserError unless `replica` is below `replicas`, or None if the run has no replicas."""
    is_valid = is_number(replica, Integral) and 0 <= replica < replicas  # type: ignore[operator]
    if replicas > 1 and not is_valid:
        given = "replica" if replica is None else f"replica={replica}"
        rule = f"must be 0 to {replicas - 1}, because the run has {replicas} replicas"
        raise UserError(f"{given}: {rule}" + ("; give replica=0" if replica is None else ""))
    if replicas == 1 and replica is not None:
        raise UserError(f"replica={replica}: the run has no replicas")


def newest(folder: Path) -> tuple[Path | None, dict[Path, UserError]]:
    """Find the newest intact checkpoint in a run folder to resume from; None if there is none.

    Also returns the damaged checkpoints that are newer, each with its error.
    """
    candidates = [folder / f"checkpoints/{name}.ckpt" for name in ("last", "previous")]
    requeued = sorted(folder.glob(REQUEUED), key=lambda path: path.stat().st_mtime_ns)
    since = candidates[0].stat().st_mtime_ns if candidates[0].exists() else 0
    newer = [path for path in reversed(requeued) if path.stat().st_mtime_ns > since]
    damaged: dict[Path, UserError] = {}
    for path in [*newer, *candidates]:
        if not path.exists():
            continue
        try:
            load(path)
            return path, damaged
        except UserError as error:
            damaged[path] = error
    return None, damaged


def warn_of_damaged(folder: Path, found: Path | None, damaged: Mapping[Path, UserError]) -> None:
    """Warn of damaged checkpoints, and of a training that starts from the beginning."""
    what = "" if found is None else "; using the one before it"
    for error in damaged.values():
        log.warning("%s%s", error, what)
    if found is None:
        log.warning("%s: no checkpoint to resume from; training starts from the beginning", folder)


def remove_damaged(folder: Path, damaged: Iterable[Path]) -> None:
    """Remove damaged checkpoints and scratch files from a run folder."""
    remove_abandoned(folder)
    for path in damaged:
        path.unlink(missing_ok=True)  # else it would become previous.ckpt


def remove_requeued(folder: Path) -> None:
    """Remove the checkpoints from SLURM requeues; Lightning would test one of them instead of the best."""
    for path in folder.glob(REQUEUED):
        path.unlink()
