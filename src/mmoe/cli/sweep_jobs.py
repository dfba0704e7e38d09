"""Run the jobs of a sweep: continue when a job fails, and list the failed jobs at the end."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from mmoe.cli.exits import wait_for
from mmoe.cli.overrides import searchpath_override
from mmoe.errors import SIGNAL_EXIT_CODES, USER_ERROR

ERROR = "error.txt"  # file in a failed job's folder with its overrides, then the reason
UNWRITTEN: dict[Path, str] = {}  # the text of each error file that could not be written


def is_sweep_job() -> bool:
    """Whether this is the first process of a job in a sweep with the callback `failed_jobs`."""
    hydra = HydraConfig.get()
    return (
        hydra.mode == RunMode.MULTIRUN
        and "failed_jobs" in hydra.callbacks
        and os.environ.get("LOCAL_RANK", "0") == "0"
    )


def run_job(job: Callable[[], None]) -> None:
    """Run a job of a sweep. If it fails, write the reason to its folder and let the sweep continue.

    Ctrl-C, SIGTERM and SIGHUP end the whole sweep.
    """
    note = Path(HydraConfig.get().runtime.output_dir) / ERROR
    note.unlink(missing_ok=True)
    try:
        job()
    except SystemExit as end:
        if end.code in (None, 0, *SIGNAL_EXIT_CODES):
            raise
        reason = str(getattr(end, "message", "")) or f"exit code {end.code}"
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    else:
        return
    text = f"{' '.join(HydraConfig.get().overrides.task)}\n{reason}\n"
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(text, "utf-8")
    except OSError:  # perhaps the disk is full, and the job failed for that reason
        UNWRITTEN[note] = text


def run_alone(override: str, is_resumed: bool) -> None:
    """Run this job of a sweep as a separate command, because the job starts more processes.

    `override` sets the run folder: `resume=...` if `is_resumed`, else `hydra.run.dir=...`.

    Raises:
        SystemExit: the command failed; the exit code is the same.
        Stopped: this process received a signal and passed it on to the command, which has ended.
    """
    hydra = HydraConfig.get()
    sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    command = [sys.executable, "-m", "mmoe.train", f"--config-name={hydra.job.config_name}"]
    # The search path alone is not enough: Hydra looks for the file of --config-name in --config-dir.
    command += [f"--config-dir={path}" for path in sources]
    command += searchpath_override()
    command += [override] if is_resumed else [*hydra.overrides.task, override]
    with subprocess.Popen(command, cwd=hydra.runtime.cwd) as process:
        code = wait_for(process)  # a stopped command has saved a checkpoint
    if code:
        raise SystemExit(code)


class FailedJobs(Callback):
    """At the end of a sweep, list the failed jobs and exit with code 2, or name the next command."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        notes = {path: path.read_text("utf-8") for path in sorted(folder.rglob(ERROR))} | UNWRITTEN
        UNWRITTEN.clear()
        if not notes:
            print(f"sweep folder: {folder}; python -m mmoe.compare {folder} compares its runs")
            return
        print(f"failed jobs: {len(notes)}", file=sys.stderr)
        for note, text in notes.items():
            overrides, _, reason = text.rstrip("\n").partition("\n")
            print(f"  {note.parent} ({overrides}): {reason}", file=sys.stderr)
        advice = f"repeat the command with hydra.sweep.dir={folder}"
        print(f"to run the unfinished jobs, {advice}", file=sys.stderr)
        raise SystemExit(USER_ERROR)
