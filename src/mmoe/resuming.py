"""What a run goes on from: its own configuration, and its newest whole checkpoint."""

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mmoe.cli import remove_if_empty
from mmoe.runs import load_checkpoint, read

log = logging.getLogger(__name__)

HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")  # of the trainer: a run may go on with others


def take_up(run: Path, made: Path, overrides: Sequence[str], trainer: DictConfig) -> tuple[Path, DictConfig]:
    """The folder and the configuration of a run that is to go on; the folder that Hydra made is removed.

    Args:
        run: its folder.
        made: the folder that Hydra made.
        overrides: those that were given: `resume=...`, and of the trainer what may change, the hardware.
        trainer: what they make of the trainer's configuration.

    Raises:
        ValueError: other overrides were given, or it is not the folder of a run that has not ended.
    """
    allowed = ("resume=", "trainer=", *(f"trainer.{key}=" for key in HARDWARE))
    others = [o for o in overrides if not o.lstrip("+").startswith(allowed)]
    if others:
        raise ValueError(
            f"resume={run}: goes on with the run's own configuration; leave out {', '.join(others)}"
        )
    read(run)  # whose rules the configuration must keep
    if (run / "metrics.json").exists():
        raise ValueError(f"resume={run}: the run has ended, as its metrics.json says")
    remove_if_empty(made)
    folder = run.absolute()
    text = (folder / "config.yaml").read_text("utf-8").replace("${hydra:runtime.output_dir}", str(folder))
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    given = {o.lstrip("+").split("=")[0] for o in overrides}
    for key in HARDWARE:
        if "trainer" in given or f"trainer.{key}" in given:
            config.trainer.pop(key, None)
            config.trainer.update({key: trainer[key]} if key in trainer else {})
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
            path.unlink(missing_ok=True)  # or it would become the one before
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
