"""What a run goes on from: its own configuration, and its newest whole checkpoint."""

import logging
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmoe import runs
from mmoe.analysis.figures import plots_of
from mmoe.atomic import remove_abandoned
from mmoe.build import packages
from mmoe.cli import remove_if_empty
from mmoe.errors import UserError

log = logging.getLogger(__name__)

HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")  # of the trainer: a run may go on with others
KEYWORDS = ("null", "true", "false", "inf", "nan")  # of Hydra's grammar
REQUEUED = "hpc_ckpt_*.ckpt"  # what Lightning saves before SLURM requeues a job
LONGER = ("max_epochs", "max_steps")  # of the trainer: a run that has ended may be trained longer


def take_up(run: Path, made: Path, overrides: Sequence[str], given: DictConfig) -> tuple[Path, DictConfig]:
    """The folder and the configuration of a run that is to go on; the folder that Hydra made is removed.

    Args:
        run: its folder.
        made: the folder that Hydra made.
        overrides: those that were given: `resume=...`, `trust=...`, and of the trainer what may change, the
            hardware and how long it trains.
        given: the configuration that they make, of which `trainer` and `trust` are read.

    Raises:
        UserError: other overrides were given, or the run has ended and nothing lacks.
    """
    names = {o.lstrip("+").split("=")[0]: o for o in overrides}
    changes = [f"trainer.{key}" for key in (*HARDWARE, *LONGER)]
    others = [o for name, o in names.items() if name not in ("resume", "trust", "trainer", *changes)]
    if others:
        raise UserError(
            f"resume={run}: goes on with the run's own configuration; leave out {', '.join(others)}"
        )
    trust = given.get("trust") or ()
    config, _ = runs.read(run, trust=trust)
    longer = {key: given.trainer[key] for key in LONGER if f"trainer.{key}" in names}
    if (run / "metrics.json").exists():
        if longer:
            _check_longer(run, longer, config)
        elif not lacks_figures(run, config, trust):
            with runs.locked(run):
                remove_abandoned(run)  # of one that was killed at its very end
            raise UserError(
                f"resume={run}: the run has ended, as its metrics.json says; a larger trainer.max_epochs=..."
                " trains it longer"
            )
    remove_if_empty(made)
    folder = run.absolute()
    for key in HARDWARE:
        if "trainer" in names or f"trainer.{key}" in names:
            config.trainer.pop(key, None)
            config.trainer.update({key: given.trainer[key]} if key in given.trainer else {})
    config.trainer.update(longer)
    _keep_csv_logs(folder, config.get("logger"))
    return folder, config


def lacks_figures(run: Path, config: DictConfig, trust: Sequence[str] | None = None) -> bool:
    """Whether a run that has ended was killed before all its figures were drawn.

    Args:
        run: its folder.
        config: its configuration.
        trust: packages that it may be built from; None are those of `config`.
    """
    if not config.get("figures"):
        return False
    names = plots_of(run, packages(config) if trust is None else trust)
    return not all((run / f"figures/{name}.png").exists() for name in names)


def _check_longer(run: Path, longer: dict[str, Any], config: DictConfig) -> None:
    """Raise UserError unless a run that has ended can be trained so long; warn of its schedule."""
    metrics = runs.read_metrics(run)
    for key, done in (("max_epochs", metrics["epochs"]), ("max_steps", metrics["steps"])):
        limit = longer.get(key, -1)
        if not isinstance(limit, int) or -1 < limit <= done:
            raise UserError(f"trainer.{key}={limit}: must be more than the {done} that the run has")
    schedule = OmegaConf.select(config, "learner.scheduler") or {}
    name = schedule.get("_target_")
    if "total_steps" in schedule.values() or "total_steps" in schedule:
        raise UserError(f"resume={run}: its schedule {name} ends with the training that it was made for")
    if name:
        log.warning("%s: its schedule %s goes on as it was made", run, name)
    stored = runs.load_checkpoint(runs.checkpoints(run, "last")[0])
    if stored.get("mmoe", {}).get("should_stop"):
        raise UserError(
            f"resume={run}: early stopping ended the run after epoch {metrics['epochs']}, and would again"
        )


def has_other_length(folder: Path, config: DictConfig) -> bool:
    """Whether a configuration trains for another time than the one in the run's folder."""
    stored = runs.stored_config(folder)["trainer"]
    return any(stored.get(key) != config.trainer.get(key) for key in LONGER)


def lengthen(folder: Path, config: DictConfig) -> None:
    """Note in a run's folder that it trains longer; until it ends again, it is a run that was stopped."""
    if has_other_length(folder, config):
        stored = OmegaConf.create(runs.stored_config(folder))
        stored.trainer.update({key: config.trainer[key] for key in LONGER if key in config.trainer})
        (folder / "metrics.json").unlink(missing_ok=True)
        runs.write_config(folder, runs.as_text(stored))


def _keep_csv_logs(folder: Path, logger: Any) -> None:
    """Give CSV loggers a folder of their own: they would delete what they find."""
    if isinstance(logger, DictConfig):
        if logger.get("version") == "csv":
            logger.version = f"csv_{len(list(folder.glob('csv*'))) + 1}"
        for child in logger.values():
            _keep_csv_logs(folder, child)


def command(folder: Path) -> str:
    """The command that goes on with a run, to be pasted into a shell."""
    return f"python -m mmoe.train {shlex.quote(override('resume', os.path.relpath(folder)))}"


def override(key: str, value: str) -> str:
    """`key=value`, quoted for Hydra's grammar, in which a backslash before a quote must be doubled."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    is_plain = re.fullmatch(r"[a-zA-Z_./-]*/[\w./-]*|[a-z]+", value) and value not in KEYWORDS
    return f"{key}={value}" if is_plain else f"{key}='{escaped}'"


def remove_requeued(folder: Path) -> None:
    """Remove what was saved before SLURM requeued the job: Lightning would test it in place of the best."""
    for path in folder.glob(REQUEUED):
        path.unlink()


def newest(folder: Path, tidy: bool = True) -> Path | None:
    """The newest whole checkpoint of a run folder that training can go on from; None without any.

    One that is cut short or has a changed bit, by the checksums in it, is passed over with a warning.

    Args:
        folder: the run folder.
        tidy: remove damaged checkpoints, and what was being written when the run was killed; for the first
            process alone.
    """
    if tidy:
        remove_abandoned(folder)
    candidates = [folder / f"checkpoints/{name}.ckpt" for name in ("last", "previous")]
    requeued = sorted(folder.glob(REQUEUED), key=lambda path: path.stat().st_mtime_ns)
    since = candidates[0].stat().st_mtime_ns if candidates[0].exists() else 0
    newer = [path for path in reversed(requeued) if path.stat().st_mtime_ns > since]
    for path in [*newer, *candidates]:
        if not path.exists():
            continue
        try:
            runs.load_checkpoint(path)
            return path
        except UserError as error:
            if tidy:
                log.warning("%s; the one before is taken", error)
                path.unlink(missing_ok=True)  # or it would become the one before
    if tidy:
        log.warning("%s: no checkpoint to go on from; training begins anew", folder)
    return None
