"""What every command does around Hydra: errors on one line, and no empty folder left behind."""

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mmoe.errors import DISK, disk_trouble, end, one_line
from mmoe.training.sweep_jobs import in_sweep, survive


def one_line_errors(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Let Hydra's `main` run under `one_line`; an empty run folder is removed when it fails."""

    @wraps(main)
    def wrapper(config: DictConfig) -> None:
        logging.captureWarnings(True)
        # Lightning 2.6 uses a name that torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")
        warnings.filterwarnings("ignore", message="The number of training batches")  # of a small data set
        warnings.filterwarnings("ignore", message=".*sync_dist=True")  # metrics are those of all processes
        warnings.filterwarnings("ignore", message="Checkpoint directory")  # is not empty when a run goes on
        warnings.filterwarnings("ignore", message="You requested to overfit")  # our loader keeps its order
        warnings.filterwarnings("ignore", message=".*could not find the monitored key")  # train.py says it

        def job() -> None:
            try:
                with one_line():
                    main(config)
            except BaseException:
                remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
                raise

        survive(job) if in_sweep() else job()

    return wrapper


class RunFolder(Callback):
    """Make Hydra's run folder before Hydra does, which would answer a read-only disk with a traceback."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Exit with code 3 if it cannot be made."""
        self._make(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """The same of the folder of a sweep."""
        self._make(config.hydra.sweep.dir)

    def _make(self, folder: str) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            end(DISK, disk_trouble(error))


def remove_if_empty(folder: Path) -> None:
    """Remove the run folder that Hydra made, and the experiment's folder, unless something is in them."""
    with suppress(OSError):
        for empty in (folder, folder.parent):
            if not Path.cwd().is_relative_to(empty.absolute()):
                empty.rmdir()
