"""Compose configurations, and run the commands of mmoe."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli.exits import errors_on_one_line, wait_for
from mmoe.errors import Stopped
from mmoe.training.run_folder import has_ended

_running: set[subprocess.Popen[bytes]] = set()


def compose_config(*overrides: str) -> DictConfig:
    """The configuration of `python -m mmoe.train` with these overrides."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def run_command(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """Run `python -m mmoe.NAME`. If it fails, exit with its code; it has printed the error itself.

    A signal that ends the script ends the command first. If commands run in threads, `run_in_threads` does
    this.
    """
    stdout = subprocess.DEVNULL if name == "train" else None
    command = [sys.executable, "-m", f"mmoe.{name}", *arguments]
    with errors_on_one_line(), subprocess.Popen(command, stdout=stdout, env=env) as process:
        _running.add(process)
        try:
            code = wait_for(process)
        finally:
            _running.remove(process)
    if code:
        raise SystemExit(code)


def run_in_threads(
    jobs: Sequence[Callable[[], None]], at_once: int, on_end: Callable[[int], None] = lambda place: None
) -> None:
    """Run jobs that call `run_command`. Call `on_end` with the position of each job that has ended.

    An error or a signal cancels the jobs that have not begun. A signal also ends the running commands.
    """
    with errors_on_one_line(), ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(job): place for place, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                future.result()
                on_end(futures[future])
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, Stopped) and error.number != signal.SIGINT:
                _end_commands(futures, signal.Signals(error.number))  # Ctrl-C: the terminal signals them too
            raise


def _end_commands(futures: Collection[Future[None]], number: signal.Signals) -> None:
    """Send a signal to every command, also to those that threads are just starting."""
    signalled: set[subprocess.Popen[bytes]] = set()
    while not all(future.done() for future in futures):
        for process in list(_running - signalled):
            process.send_signal(number)
            signalled.add(process)
        time.sleep(0.05)


def train_once(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """Train in a run folder, unless the run there has ended. A stopped run starts from the beginning."""
    if not has_ended(folder):
        shutil.rmtree(folder, ignore_errors=True)
        run_command("train", *arguments, "logger=none", f"hydra.run.dir={folder}", env=env)


def allow_existing_keys(overrides: Sequence[str]) -> list[str]:
    """Overrides for a tuned experiment, which may already have their keys: `+key` becomes `++key`."""
    return [f"+{one}" if one.startswith("+") and not one.startswith("++") else one for one in overrides]
