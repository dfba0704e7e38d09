"""What all commands share: how they start, report errors and signals, and their exit codes."""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue
from yaml import YAMLError

from mmoe import CONF_DIR
from mmoe.atomic import remove_if_empty
from mmoe.errors import (
    DISK_ERROR,
    END_SIGNALS,
    USER_ERROR,
    Stopped,
    UserError,
    exit_code,
    first_line,
    is_disk_error,
)  # fmt: skip
from mmoe.training.sweep_jobs import in_sweep, run_job

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 200  # characters per line, when the output is not a terminal
DEFAULT_EXPERIMENT = "census"  # that of conf/train.yaml
# Warnings of Lightning and torch that need no action.
IGNORED_WARNINGS = (
    "The number of training batches",  # it is smaller than the logging interval on small data
    ".*sync_dist=True",  # metrics already cover all processes
    "Checkpoint directory",  # it is not empty when a run is resumed
    "You requested to overfit",  # our loader does not shuffle then
    ".*could not find the monitored key",  # the final report says so
)


def run_name(overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    """The folder of a run below runs/: the experiment, or the data set if no experiment was chosen."""
    data, experiment = choices.get("data"), choices.get("experiment")
    is_chosen = experiment != DEFAULT_EXPERIMENT or any(o.startswith("experiment=") for o in overrides)
    return str(experiment if experiment and (is_chosen or not data) else data)


OmegaConf.register_new_resolver("run_name", run_name, replace=True)  # for hydra.run.dir in conf/train.yaml


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorate a command's `main`, which gets the configuration that Hydra composes from the command line.

    Errors are printed on one line, and the run folder is removed if it stays empty.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @wraps(main)
        def run(config: DictConfig) -> None:
            logging.captureWarnings(True)
            ignore_warnings()

            def job() -> None:
                try:
                    with errors_on_one_line():
                        import_libraries()
                        main(config)
                except BaseException:
                    remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
                    raise

            run_job(job) if in_sweep() else job()

        compose = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)

        @wraps(main)
        def check_and_run() -> None:
            with errors_on_one_line():
                check_config_files(sys.argv[1:])
            compose(run)()

        return check_and_run

    return decorate


def check_config_files(arguments: Sequence[str]) -> None:
    """Raise UserError if a file that the command line names, as by `data=mine`, is not valid YAML.

    The files that its defaults name are checked as well. Hydra would end with a traceback.
    """
    folders = [CONF_DIR]
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, _, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            folders.append(Path(value or following))
    named: list[Path] = []
    for group, _, names in (argument.lstrip("+").partition("=") for argument in arguments):
        named += [Path(group.partition("@")[0], f"{name}.yaml") for name in names.split(",")]
    checked: set[Path] = set()
    while named:
        file = named.pop()
        for path in {folder / file for folder in folders} - checked:
            checked.add(path)
            # Path.is_file raises OSError for a value that is too long for a file name.
            if not os.path.isfile(path):  # noqa: PTH113
                continue
            try:
                config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            except (YAMLError, ValueError, OSError) as error:
                raise UserError(f"{path}{_problem(error)}") from None
            named += _defaults(config, file.parent)


def _defaults(config: Any, group: Path) -> list[Path]:
    """The files that the defaults of a file in a group name, relative to the folder of configurations."""
    found: list[Path] = []
    defaults = config.get("defaults") if isinstance(config, dict) else None
    for entry in defaults if isinstance(defaults, list) else []:
        for key, names in entry.items() if isinstance(entry, dict) else [("", entry)]:
            words = str(key).partition("@")[0].split()
            name = words[-1] if words else ""  # after optional and override
            folder = Path(name.lstrip("/")) if name.startswith("/") else group / name
            found += [folder / f"{one}.yaml" for one in (names if isinstance(names, list) else [names])]
    return found


def _problem(error: Exception) -> str:
    """The line of an error in a file, and what is wrong."""
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f", line {mark.line + 1}"
    return f"{line}: must be valid YAML; {getattr(error, 'problem', None) or first_line(error)}"


def open_console() -> "Console":
    """Print to the terminal. Without one, lines are longer, so that tables in a log file are not cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH)


def import_libraries() -> None:
    """Import what the commands need, without garbage collections, which take a quarter of the time.

    It happens here, and not at the top of a file, so that --help does not wait for torch.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    import mmoe.run  # noqa: F401

    gc.freeze()  # later collections skip these objects
    gc.enable()


def ignore_warnings() -> None:
    """Hide warnings of libraries that no user can act on."""
    # Lightning 2.6 uses a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


class MakeRunFolder(Callback):
    """Make the run folder before Hydra does, so that a read-only disk gives a one-line error."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._make("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._make("hydra.sweep.dir", config.hydra.sweep.dir)

    def _make(self, key: str, folder: str) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_error(error):
                exit_with(DISK_ERROR, disk_message(error))
            exit_with(USER_ERROR, f"{key}={folder}: cannot be a folder ({error.strerror})")


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise `Stopped` on Ctrl-C, SIGTERM and SIGHUP, so that files and locks are cleaned up.

    A signal that is ignored (as under nohup) or already has a handler stays as it is. Ctrl-C is included
    because Lightning turns a KeyboardInterrupt into exit code 1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> NoReturn:
        received.append(number)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *END_SIGNALS)}
    ours = [n for n, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    except Exception:
        if received:  # a library's clean-up failed after the signal, and its error replaced Stopped
            raise Stopped(received[0]) from None
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])


@contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Turn errors that are not bugs into one line on stderr and an exit code.

    The exit code is 2 for a user error, 3 for a full or unwritable disk, 130 for Ctrl-C, 143 for SIGTERM and
    129 for SIGHUP. HYDRA_FULL_ERROR=1 shows the traceback of an error instead.
    """
    try:
        with raise_on_signals():
            yield
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped", file=sys.stderr)
        raise SystemExit(exit_code(stop)) from None
    except Exception as error:
        message = _error_message(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        exit_with(DISK_ERROR if isinstance(error, OSError) else USER_ERROR, message)


def _error_message(error: Exception) -> str | None:
    """Return one line about an error of the user or the disk; None for a bug."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=...: must be given"
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key}: {first_line(error)}"
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    return disk_message(error) if is_disk_error(error) else None


def exit_with(code: int, message: str) -> NoReturn:
    """Print an error message and exit. Sweeps read the message from the SystemExit."""
    print(f"error: {message}", file=sys.stderr)
    stop = SystemExit(code)
    stop.message = message  # type: ignore[attr-defined]
    raise stop from None


def disk_message(error: OSError) -> str:
    """Return one line with the file and the operating system's reason."""
    where = f"{os.path.relpath(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}; files written earlier are complete"
