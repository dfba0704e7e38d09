"""Exit codes and error messages: one line for user errors and disk errors, a traceback for bugs."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

USER, DISK = 2, 3  # exit codes
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed
SIGNAL_EXIT_CODES = tuple(128 + number for number in (signal.SIGINT, *END_SIGNALS))
# errno values of a full, read-only or broken disk
UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM
)  # fmt: skip


class UserError(ValueError):
    """The user's input breaks a rule. The message states the value and the rule."""


class ArgumentError(UserError):
    """An argument breaks a rule. The message begins with its name; `build` puts the config key before it."""


class Stopped(BaseException):
    """The process received a signal that asks it to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(stop: BaseException) -> int:
    """Return 128 + the signal's number, as shells do, for a `Stopped` or a KeyboardInterrupt."""
    return 128 + int(getattr(stop, "number", signal.SIGINT))


@contextmanager
def signals_raise() -> Iterator[None]:
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
def one_line() -> Iterator[None]:
    """Turn errors that are not bugs into one line on stderr and an exit code.

    The exit code is 2 for a user error, 3 for a full or unwritable disk, 130 for Ctrl-C, 143 for SIGTERM and
    129 for SIGHUP. HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with signals_raise():
            yield
    except MissingMandatoryValue as error:
        exit_with(USER, f"{error.full_key}=...: must be given")
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped", file=sys.stderr)
        raise SystemExit(exit_code(stop)) from None
    except InterpolationResolutionError as error:
        if show_traceback:
            raise
        exit_with(USER, f"{error.full_key}: {first_line(error)}")
    except UserError as error:
        if show_traceback:
            raise
        exit_with(USER, " ".join(str(error).split()))
    except OSError as error:
        if show_traceback or error.errno not in UNWRITABLE:
            raise
        exit_with(DISK, disk_message(error))


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a failed run, and the experiment's folder above it, if they are empty."""
    with suppress(OSError):
        for path in (folder, folder.parent):
            if not Path.cwd().is_relative_to(path.absolute()):
                path.rmdir()
