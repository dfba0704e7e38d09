"""Resume a stopped run, or train a finished run for longer."""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from glob import escape
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger

from mmoe.atomic import remove_if_empty
from mmoe.build import locate
from mmoe.cli.overrides import quote_override
from mmoe.cli.sweep_jobs import is_sweep_job
from mmoe.data.schema import Schema
from mmoe.errors import Stopped, UserError, exit_code
from mmoe.training import checkpoints, run_folder, stored_config
from mmoe.training.trust import check_folder

log = logging.getLogger(__name__)

# Options of the trainer that may change when a run is resumed.
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
LENGTH = ("max_epochs", "max_steps")


def run_to_train(config: DictConfig) -> tuple[Path, DictConfig, bool]:
    """The run folder, its configuration, and whether it holds a run to resume.

    `resume=` names the folder. A job in a sweep, or one that SLURM restarts, resumes the run in its own
    output folder.

    Raises:
        UserError: a run cannot be resumed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.get("resume") is not None:
        return *resume(Path(str(config.resume)), folder, HydraConfig.get().overrides.task, config), True
    starts_again = is_sweep_job() or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return folder, config, starts_again and stored_config.is_run_of(folder, config)


def resume(run: Path, hydra_folder: Path, overrides: list[str], given: DictConfig) -> tuple[Path, DictConfig]:
    """Return the folder and the configuration of a run to resume, and remove the folder that Hydra made.

    The command line's `overrides` may change the trainer's hardware and length, and `trust`. Hydra composed
    `given` from them.

    Raises:
        UserError: an override changes anything else, or the run cannot train to the new length.
    """
    names = {override.lstrip("+").split("=")[0]: override for override in overrides}
    changes = [f"trainer.{key}" for key in (*HARDWARE, *LENGTH)]
    others = [o for name, o in names.items() if name not in ("resume", "trust", "trainer", *changes)]
    if others:
        rule = f"resumes with the run's own configuration; leave out {', '.join(others)}"
        raise UserError(f"resume={run}: {rule}")
    if run.is_dir() and not (run / "config.yaml").exists():
        if stored_config.holds_runs(run):
            raise UserError(
                f"resume={run}: holds a sweep; name one of its runs, or repeat the sweep's command"
            )
        rule = "holds no run; if it was stopped before its first step, such as while it encoded rows"
        raise UserError(f"resume={run}: {rule}, repeat the command that started it")
    config = stored_config.read_config(run)
    run_folder.read_schema(run)  # raises if it is missing or damaged
    parts = (*stored_config.REQUIRED_PARTS, "balance", "callbacks", "logger")
    check_folder(run, parts, given.get("trust") or ())
    lengths = {key: given.trainer[key] for key in LENGTH if f"trainer.{key}" in names}
    if run_folder.has_ended(run):
        run_folder.read_metrics(run)  # raises if the file is damaged
        if lengths:
            _check_longer(run, lengths, config)
    elif lengths:
        _check_reached(run, lengths)
    remove_if_empty(hydra_folder)
    folder = run.absolute()
    for key in HARDWARE:
        if "trainer" in names or f"trainer.{key}" in names:
            config.trainer.pop(key, None)
            config.trainer.update({key: given.trainer[key]} if key in given.trainer else {})
    config.trainer.update(lengths)
    _rename_csv_logs(config.get("logger"))
    return folder, config


def _check_longer(run: Path, longer: dict[str, Any], config: DictConfig) -> None:
    """Raise UserError if an ended run cannot train to the new length. Warn if it has a schedule."""
    metrics = run_folder.read_metrics(run)
    for key, done in (("max_epochs", metrics["epochs"]), ("max_steps", metrics["steps"])):
        limit = longer.get(key, config.trainer.get(key))
        if limit is not None and (not isinstance(limit, int) or -1 < limit <= done):
            raise UserError(f"trainer.{key}={limit}: must be more than the {done} that the run has")
    schedule = OmegaConf.select(config, "learner.scheduler") or {}
    name = schedule.get("_target_")
    # An argument `total_steps`, or one whose value is the text `total_steps`, fixes the schedule's length.
    if "total_steps" in schedule.values() or "total_steps" in schedule:
        raise UserError(f"resume={run}: its schedule {name} ends with the training that it was made for")
    last, _ = checkpoints.newest(run)
    if last is None:
        raise UserError(f"resume={run}: has no last.ckpt or previous.ckpt, so it cannot be trained longer")
    if checkpoints.load(last).get("mmoe", {}).get("should_stop"):
        ended = f"early stopping ended the run after epoch {metrics['epochs']}"
        raise UserError(f"resume={run}: {ended}, and would end it again")
    end, after = schedule.get("T_max"), longer.get("max_epochs")
    before = -1 if config.trainer.get("max_epochs") is None else config.trainer.max_epochs  # -1: no limit
    by_epoch = config.learner.get("interval") in (None, "epoch")
    if by_epoch and isinstance(end, int) and after and before <= end < after:  # a cosine would rise again
        rule = f"init_from={run} starts a new training from its weights"
        raise UserError(f"resume={run}: its schedule {name} ends with epoch {end}; {rule}")
    if name:
        log.warning("%s: its schedule %s continues unchanged", run, name)


def _check_reached(run: Path, lengths: dict[str, Any]) -> None:
    """Raise UserError if a stopped run has already trained beyond a new length."""
    last, _ = checkpoints.newest(run)
    if last is None:
        return
    stored = checkpoints.load(last)
    for key, reached in (("max_epochs", stored["epoch"] + 1), ("max_steps", stored["global_step"])):
        length = lengths.get(key)
        if isinstance(length, int) and -1 < length < reached:
            what = key.removeprefix("max_").removesuffix("s")
            rule = f"must be at least {reached}, because the run has reached {what} {reached}"
            raise UserError(f"trainer.{key}={length}: {rule}")


def _rename_csv_logs(logger: Any) -> None:
    """Give CSV loggers a new folder, because they would delete the files in the old one.

    Without a `version`, they choose a new folder themselves.
    """
    if isinstance(logger, DictConfig):
        kind = locate(logger._target_, "logger") if "_target_" in logger else None
        if isinstance(kind, type) and issubclass(kind, CSVLogger) and logger.get("version") is not None:
            before = Path(logger.save_dir, logger.get("name", "lightning_logs") or "").glob(
                f"{escape(str(logger.version))}*"
            )
            logger.version = f"{logger.version}_{len(list(before)) + 1}"
        for child in logger.values():
            _rename_csv_logs(child)


def is_complete(folder: Path, config: DictConfig) -> bool:
    """Whether the run in a folder has trained as long as the configuration says."""
    return run_folder.has_ended(folder) and not _has_other_length(folder, config)


def _has_other_length(folder: Path, config: DictConfig) -> bool:
    stored = stored_config.read_plain_config(folder)["trainer"]
    return any(stored.get(key) != config.trainer.get(key) for key in LENGTH)


@contextmanager
def in_run_folder(
    folder: Path, config: DictConfig, schema: Schema, is_resumed: bool, is_rank_zero: bool
) -> Iterator[None]:
    """Write a new run's first files, and lock the folder. After a signal, print the command that resumes it.

    Only the first process does this.

    Raises:
        UserError: the folder holds another run, the rows have changed, or another process uses the folder.
    """
    if is_resumed and schema != run_folder.read_schema(folder):
        raise UserError(f"resume={folder}: its rows are no longer those of its schema.json")
    if is_rank_zero and not is_resumed:
        run_folder.start(folder, stored_config.portable_yaml(config), schema)
    try:
        with run_folder.locked(folder) if is_rank_zero else nullcontext():
            if is_rank_zero and is_resumed:
                _store_length(folder, config)
            yield
    except (KeyboardInterrupt, Stopped) as stop:
        if is_rank_zero and (folder / "config.yaml").exists():
            argument = shlex.quote(quote_override("resume", os.path.relpath(folder)))
            print(f"stopped; resume with: python -m mmoe.train {argument}", flush=True)
        raise SystemExit(exit_code(stop)) from None


def _store_length(folder: Path, config: DictConfig) -> None:
    """Store a run's new length. The run counts as stopped until it ends again."""
    if _has_other_length(folder, config):
        stored = OmegaConf.create(stored_config.read_plain_config(folder))
        stored.trainer.update({key: config.trainer[key] for key in LENGTH if key in config.trainer})
        (folder / "metrics.json").unlink(missing_ok=True)
        stored_config.write_config(folder, stored_config.to_yaml(stored))
