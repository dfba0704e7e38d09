"""What all Hydra commands share: one-line errors, and no empty run folder after a failure."""

import logging
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mmoe.errors import DISK, disk_message, exit_with, one_line, remove_if_empty
from mmoe.training.sweep_jobs import in_sweep, run_job

# Warnings of Lightning and torch that need no action.
IGNORED_WARNINGS = (
    "The number of training batches",  # it is smaller than the logging interval on small data
    ".*sync_dist=True",  # metrics already cover all processes
    "Checkpoint directory",  # it is not empty when a run is resumed
    "You requested to overfit",  # our loader does not shuffle then
    ".*could not find the monitored key",  # the final report says so
)


def one_line_errors(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Decorate a command's `main`: print errors on one line, and remove the run folder if it stays empty."""

    @wraps(main)
    def wrapper(config: DictConfig) -> None:
        logging.captureWarnings(True)
        # Lightning 2.6 uses a name that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)

        def job() -> None:
            try:
                with one_line():
                    main(config)
            except BaseException:
                remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
                raise

        run_job(job) if in_sweep() else job()

    return wrapper


class RunFolder(Callback):
    """Make the run folder before Hydra does, so that a read-only disk gives a one-line error."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._make(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._make(config.hydra.sweep.dir)

    def _make(self, folder: str) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            exit_with(DISK, disk_message(error))
