"""Files that appear whole or not at all.

A file is written under a scratch name beside its place, then renamed. The writer holds a lock on its scratch
file, so a scratch file that nobody holds was left by a process that was killed.
"""

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from mmoe.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX: scratch files of killed processes stay
    fcntl = None  # type: ignore[assignment]

IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
SCRATCH = re.compile(r"\.scratch-[0-9a-f]{16}-(?P<target>.+)", re.DOTALL)


def write(path: Path, to: Callable[[Path], Any]) -> None:
    """Let `to` write a file beside `path`, then rename it.

    The file's permissions follow the umask. The scratch file's name ends with the name of `path`, so `to` may
    look at its suffixes. Several processes may write the same `path`; the last one wins.

    Raises:
        UserError: a file stands where a folder of `path` should be, or a folder where `path` should be.
        OSError: the disk is full or read-only, say; its `filename` is `path`, or another file that `to` used.
    """
    scratch = handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent.glob(f".scratch-*-{escape(path.name)}"))
        scratch, handle = _create(path)
        to(scratch)
        sync(scratch)
        scratch.replace(path)
        with suppress(OSError):  # some file systems cannot sync a folder
            sync(path.parent)
    except BaseException as error:
        if scratch:
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            named = Path(os.fsdecode(error.filename)) if error.filename else None
            if named is None or SCRATCH.fullmatch(named.name) or named in path.parents:
                error.filename, error.filename2 = str(path), None
                if error.errno in IN_THE_WAY:
                    raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        raise
    finally:
        if handle is not None:
            os.close(handle)


def remove_abandoned(folder: Path) -> None:
    """Remove the scratch files in `folder` and below it whose writers were killed."""
    _remove_abandoned(scratch_files(folder))


def scratch_files(folder: Path) -> list[Path]:
    """All scratch files in `folder` and below it, sorted, including those that are being written."""
    return sorted(path for path in folder.rglob(".scratch-*") if SCRATCH.fullmatch(path.name))


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk: else its name may outlive its content in a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> tuple[Path, int | None]:
    """Make and lock a new scratch file for `path`; closing the handle releases the lock."""
    while True:
        scratch = path.with_name(f".scratch-{secrets.token_hex(8)}-{path.name}")
        handle = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the kernel applies the umask
        if fcntl is None:
            os.close(handle)
            return scratch, None
        with suppress(OSError):  # some file systems have no locks; nobody takes the file for abandoned there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, handle
        os.close(handle)  # another writer removed the file between its creation and the lock


def _remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove those scratch files that no process has locked."""
    if fcntl is None:
        return
    for scratch in paths:
        if not SCRATCH.fullmatch(scratch.name):
            continue
        with suppress(OSError):  # locked, gone, or another user's
            handle = os.open(scratch, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                scratch.unlink()
            finally:
                os.close(handle)
