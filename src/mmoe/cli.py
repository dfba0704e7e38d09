"""What every entry point does with a user's mistake: one line, exit code 2, nothing left behind."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue

from mmoe.sweeping import INTERRUPTED, in_sweep, survive

PACKAGE = Path(__file__).parent
# What a disk may say to a writer.
UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM
)  # fmt: skip


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

        def job() -> None:
            try:
                with one_line():
                    main(config)
            except BaseException:
                remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
                raise

        survive(job) if in_sweep() else job()

    return wrapper


@contextmanager
def one_line() -> Iterator[None]:
    """Report a mistake in configuration or data on one line of stderr and exit with code 2.

    Such a mistake is a ValueError that mmoe's own code raises; one of a library is a bug and keeps its
    traceback. HYDRA_FULL_ERROR=1 shows the traceback always. Where the disk is full or must not be written,
    the exit code is 3; after Ctrl-C it is 130.
    """
    traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        yield
    except MissingMandatoryValue as error:
        _end(2, f"{error.full_key}=...: must be given")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except ValueError as error:
        if not _is_ours(error) or traceback:
            raise
        _end(2, " ".join(str(error).split()))
    except OSError as error:
        if error.errno not in UNWRITABLE or traceback:
            raise
        _end(3, _unwritable(error))


def _end(code: int, message: str) -> NoReturn:
    """Print one line and exit; a sweep keeps the `message`."""
    print(f"error: {message}", file=sys.stderr)
    end = SystemExit(code)
    end.message = message  # type: ignore[attr-defined]
    raise end from None


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
            _end(3, _unwritable(error))


def _unwritable(error: OSError) -> str:
    """What the disk said, and of which file."""
    where = f"{os.path.relpath(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}; what was written before is whole"


def _is_ours(error: BaseException) -> bool:
    """Whether mmoe's code raised it, rather than something that it called."""
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def remove_if_empty(folder: Path) -> None:
    """Remove the run folder that Hydra made, and the experiment's folder, unless something is in them."""
    if folder == Path.cwd():
        return
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
