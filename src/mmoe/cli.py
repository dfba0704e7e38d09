"""What every entry point does with a user's mistake: one line, exit code 2, nothing left behind."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


def one_line_errors(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Report a mistake in configuration or data on one line of stderr and exit with code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead. A run folder in which nothing was written is removed.
    """

    @wraps(main)
    def wrapper(config: DictConfig) -> None:
        logging.captureWarnings(True)
        # Lightning 2.6 uses a name that torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")
        try:
            main(config)
        except (ValueError, InstantiationException, OmegaConfBaseException) as error:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapper


def _remove_if_empty(folder: Path) -> None:
    """Remove the run folder that Hydra made, and the experiment's folder, unless something is in them."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
