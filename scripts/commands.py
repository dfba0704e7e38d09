"""Compose configurations, and run the commands of mmoe."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.errors import END_SIGNALS
from mmoe.training.run_folder import has_ended


def compose_config(*overrides: str) -> DictConfig:
    """The configuration of `python -m mmoe.train` with these overrides."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def run_command(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """Run `python -m mmoe.NAME`. If it fails, exit with its code; it has printed the error itself."""
    stdout = subprocess.DEVNULL if name == "train" else None
    with end_signals_as_exits():
        done = subprocess.run([sys.executable, "-m", f"mmoe.{name}", *arguments], stdout=stdout, env=env)
    if done.returncode:
        raise SystemExit(done.returncode)


@contextmanager
def end_signals_as_exits() -> Iterator[None]:
    """Raise SystemExit if a signal asks the script to end, so that `subprocess.run` ends its command too.

    Only the main thread can; in another thread, signals stay as they are.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, end) for number in END_SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_once(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """Train in a run folder, unless the run there has ended. A stopped run starts from the beginning."""
    if not has_ended(folder):
        shutil.rmtree(folder, ignore_errors=True)
        run_command("train", *arguments, "logger=none", f"hydra.run.dir={folder}", env=env)


def allow_existing_keys(overrides: Sequence[str]) -> list[str]:
    """Overrides for a tuned experiment, which may already have their keys: `+key` becomes `++key`."""
    return [f"+{one}" if one.startswith("+") and not one.startswith("++") else one for one in overrides]
