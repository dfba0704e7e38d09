"""What becomes of an error: the user's mistake and the disk's trouble are one line, a bug is a traceback."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

USER, DISK = 2, 3  # exit codes; a signal's is 128 + its number

# Errors of a full, read-only or broken disk.
UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM
)  # fmt: skip
# Signals that end a program: SIGTERM from a cluster or a shutdown, SIGHUP from a closed terminal.
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class UserError(ValueError):
    """A value, a file or a configuration breaks a rule. The message states the rule and the value.

    Everything else that is raised is a bug, or the machine's trouble, and keeps its traceback.
    """


class Stopped(BaseException):
    """A signal asked the program to end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(stop: BaseException) -> int:
    """128 + the signal's number, as shells have it; Ctrl-C is SIGINT."""
    return 128 + int(getattr(stop, "number", signal.SIGINT))


STOPS = tuple(128 + number for number in (signal.SIGINT, *END_SIGNALS))  # their exit codes


@contextmanager
def signals_raise() -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and SIGHUP raise `Stopped`, so that nothing half-written or locked is left.

    Signals that are ignored, as under nohup, or that somebody handles already, are left alone. Ctrl-C is
    taken too, because Lightning turns its KeyboardInterrupt into exit code 1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def stop(number: int, _: Any) -> NoReturn:
        received.append(number)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *END_SIGNALS)}
    taken = [n for n, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    except Exception:
        if received:  # a library's clean-up failed after the signal, and its error replaced Stopped
            raise Stopped(received[0]) from None
        raise
    finally:
        for number in taken:
            signal.signal(number, before[number])


@contextmanager
def one_line() -> Iterator[None]:
    """Report a mistake of the user on one line of stderr and exit with code 2.

    Where the disk is full or must not be written, the exit code is 3; after Ctrl-C it is 130, after SIGTERM
    143, after SIGHUP 129. HYDRA_FULL_ERROR=1 shows the traceback always.
    """
    traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with signals_raise():
            yield
    except MissingMandatoryValue as error:
        end(USER, f"{error.full_key}=...: must be given")
    except InterpolationResolutionError as error:
        if traceback:
            raise
        end(USER, f"{error.full_key}: {str(error).splitlines()[0]}")
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped", file=sys.stderr)
        raise SystemExit(exit_code(stop)) from None
    except UserError as error:
        if traceback:
            raise
        end(USER, " ".join(str(error).split()))
    except OSError as error:
        if error.errno not in UNWRITABLE or traceback:
            raise
        end(DISK, disk_trouble(error))


def end(code: int, message: str) -> NoReturn:
    """Print one line and exit; a sweep keeps the `message`."""
    print(f"error: {message}", file=sys.stderr)
    stop = SystemExit(code)
    stop.message = message  # type: ignore[attr-defined]
    raise stop from None


def disk_trouble(error: OSError) -> str:
    """What the disk said, and of which file."""
    where = f"{os.path.relpath(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}; what was written before is whole"
