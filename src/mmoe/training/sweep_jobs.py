"""What a sweep does when a job fails: Hydra alone would end it there."""

import os
import signal
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

from mmoe.errors import STOPS, Stopped

ERROR = "error.txt"
UNWRITTEN: dict[Path, str] = {}


def in_sweep() -> bool:
    """Whether this is a job of a sweep that lists those that failed; not a further process of one job."""
    hydra = HydraConfig.get()
    return (
        hydra.mode == RunMode.MULTIRUN
        and "failed_jobs" in hydra.callbacks
        and os.environ.get("LOCAL_RANK", "0") == "0"
    )


def survive(job: Callable[[], None]) -> None:
    """Run a job of a sweep; if it fails, write why to its folder, and let the others run.

    Ctrl-C, SIGTERM and SIGHUP end the whole sweep.
    """
    note = Path(HydraConfig.get().runtime.output_dir) / ERROR
    note.unlink(missing_ok=True)
    try:
        job()
    except SystemExit as end:
        if end.code in (None, 0, *STOPS):
            raise
        why = str(getattr(end, "message", "")) or f"exit code {end.code}"
    except Exception as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
    else:
        return
    text = f"{' '.join(HydraConfig.get().overrides.task)}\n{why}\n"
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(text, "utf-8")
    except OSError:  # the disk is full, say, which may be why it failed
        UNWRITTEN[note] = text


def run_alone(override: str, is_resumed: bool) -> None:
    """Run this job of a sweep as a command of its own, as the further processes that it starts need.

    Args:
        override: of the run folder, such as `resume=...` or `hydra.run.dir=...`.
        is_resumed: whether it has the rest of its configuration in the folder.

    Raises:
        SystemExit: with its exit code, if it fails.
        Stopped: when it has ended after a signal, which is passed on to it.
    """
    hydra = HydraConfig.get()
    sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    command = [sys.executable, "-m", "mmoe.train", f"--config-name={hydra.job.config_name}"]
    command += [f"--config-dir={path}" for path in sources]
    command += [override] if is_resumed else [*hydra.overrides.task, override]
    with subprocess.Popen(command, cwd=hydra.runtime.cwd) as process:
        stopped: Stopped | None = None
        while True:
            try:
                code = process.wait()
                break
            except Stopped as stop:
                stopped = stop
                if stop.number != signal.SIGINT:  # Ctrl-C reaches it by itself
                    process.send_signal(signal.Signals(stop.number))
        if stopped:  # it has ended its epoch, and kept it
            raise stopped
    if code:
        raise SystemExit(code)


class FailedJobs(Callback):
    """List the jobs that failed when a sweep is over, and end with exit code 2."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs left in their folders."""
        folder = Path(config.hydra.sweep.dir)
        notes = {path: path.read_text("utf-8") for path in sorted(folder.rglob(ERROR))} | UNWRITTEN
        UNWRITTEN.clear()
        if not notes:
            return
        print(f"failed jobs: {len(notes)}", file=sys.stderr)
        for note, text in notes.items():
            overrides, _, why = text.rstrip("\n").partition("\n")
            print(f"  {note.parent} ({overrides}): {why}", file=sys.stderr)
        print(
            f"the same command with hydra.sweep.dir={folder} runs what has not ended, and nothing twice",
            file=sys.stderr,
        )
        raise SystemExit(2)
