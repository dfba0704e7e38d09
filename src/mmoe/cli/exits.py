"""How a command ends: errors on one line, signals, and exit codes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    InterpolationResolutionError,
    MissingMandatoryValue,
)

from mmoe.errors import (
    DISK_ERROR,
    END_SIGNALS,
    USER_ERROR,
    Stopped,
    UserError,
    did_you_mean,
    exit_code,
    first_line,
    is_disk_error,
)  # fmt: skip

FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable; 1: Hydra raises errors and does not print them
OWN_MARK = "MMOE_COMPOSES"  # environment variable; if it exists, mmoe has set FULL_ERROR, not the user
RAISING_ENVIRONMENT = {FULL_ERROR: "1", OWN_MARK: "1"}


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


def wait_for(process: "subprocess.Popen[Any]") -> int:
    """Wait for a command, and return its exit code. Signals that this process gets are passed on to it.

    Call it within `raise_on_signals`.

    Raises:
        Stopped: this process received a signal, and the command has ended.
    """
    stopped: Stopped | None = None
    while True:
        try:
            code = process.wait()
            break
        except Stopped as stop:
            stopped = stop
            if stop.number != signal.SIGINT:  # for Ctrl-C, the terminal signals both processes
                process.send_signal(signal.Signals(stop.number))
    if stopped:
        raise stopped
    return code


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
        message = error_message(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        exit_with(DISK_ERROR if isinstance(error, OSError) else USER_ERROR, message)


@contextmanager
def composition_errors_on_one_line(accepts_new_keys: bool) -> Iterator[None]:
    """Turn Hydra's errors about overrides and configuration files into one line and exit code 2.

    `accepts_new_keys`: whether the command reads settings that are not in its configuration file.

    Hydra itself would print several lines and exit with 1. The job itself must run in `hydra_prints_bugs`.
    """
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    os.environ |= RAISING_ENVIRONMENT
    try:
        yield
    except CompactHydraException as error:
        exit_with(USER_ERROR, composition_message(error, accepts_new_keys))
    finally:
        _stop_raising()


@contextmanager
def hydra_prints_bugs() -> Iterator[None]:
    """Run a job so that Hydra prints the short traceback of a bug, even in `composition_errors_on_one_line`.

    `OWN_MARK` is in the environment, because a launcher of Hydra may run the job in another process.
    """
    if OWN_MARK not in os.environ:
        yield
        return
    _stop_raising()
    yield
    os.environ |= RAISING_ENVIRONMENT  # for the next job of a sweep; a bug skips this line


def _stop_raising() -> None:
    for name in RAISING_ENVIRONMENT:
        os.environ.pop(name, None)


def composition_message(error: CompactHydraException, accepts_new_keys: bool = True) -> str:
    """Return one line about a wrong override or configuration file, with a hint if a name is close."""
    cause = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, OverrideParseException):
        # Path.is_file raises OSError if the name is too long.
        is_run = os.path.isfile(Path(error.override) / "config.yaml")  # noqa: PTH113
        hint = f"; did you mean run={error.override} or resume={error.override}?" if is_run else ""
        rule = (
            "cannot be read as key=value; text with special characters needs quotes, as in \"key='a,b'\" or"
            " \"key=['größe',b]\""
        )
        return f"{error.override}: {rule}{hint}"
    if isinstance(error, MissingConfigException):
        return lines[0] + (f"; there are {', '.join(error.options)}" if error.options else "")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        hint = did_you_mean(str(cause.key), list(map(str, cause.parent_node)))
        addition = f" (+{cause.full_key}=... would add it)" if accepts_new_keys else ""
        text = f"{cause.full_key}: no such setting{addition}{hint}"
        mapping = str(cause.full_key).rpartition(".")[0]
        if mapping in ("data.validation", "data.test"):  # a rule of another kind must replace the whole rule
            text += f"; '~{mapping}' '+{mapping}={{...}}' would replace all of {mapping}"
        return text
    if isinstance(cause, ConfigTypeError) and cause.object_type in (list, dict):
        form = "a list, such as [a,b]" if cause.object_type is list else "a mapping, such as {key: value}"
        return f"{cause.full_key}: must be {form}"
    return " ".join(filter(None, lines))


def error_message(error: Exception) -> str | None:
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
