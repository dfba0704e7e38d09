"""Errors of the user and of the disk, their exit codes and their messages."""

import errno
import signal
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypeGuard

USER_ERROR, DISK_ERROR = 2, 3  # exit codes
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


class RowError(UserError):
    """A value in a column of raw rows breaks a rule. `row` counts from 0."""

    def __init__(self, column: str, row: int, rule: str) -> None:
        super().__init__(f"column {column}, row {row}: {rule}")
        self.column, self.row, self.rule = column, row, rule


class Stopped(BaseException):
    """The process received a signal that asks it to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def is_disk_error(error: BaseException) -> TypeGuard[OSError]:
    """Whether the disk is full, read-only or broken."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def exit_code(stop: BaseException) -> int:
    """Return 128 + the signal's number, as shells do, for a `Stopped` or a KeyboardInterrupt."""
    return 128 + int(getattr(stop, "number", signal.SIGINT))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(key: str, known: Sequence[str]) -> str:
    """Suggest, as the end of an error message, the known key that is most like `key`; empty if none is."""
    nearest = get_close_matches(key, known, 1)
    if not nearest:
        return ""
    (name,) = nearest
    return f"; did you mean {repr(name) if name.endswith('?') else name}?"


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The rule that an unknown key breaks, with the known keys."""
    return f"must be one of {', '.join(known)}{did_you_mean(key, known)}"
