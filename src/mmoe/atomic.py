"""Write files atomically: to a locked scratch file in the same folder, which is then renamed.

A scratch file without a lock was left by a killed process.
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
except ImportError:  # not POSIX; scratch files of killed processes then stay
    fcntl = None  # type: ignore[assignment]

# errno values for a path that cannot be a file
NOT_A_FILE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
SCRATCH = re.compile(r"\.scratch-[0-9a-f]{16}-.+", re.DOTALL)


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Call `save` with the path of a scratch file, then rename that file to `path`.

    The scratch file has the suffixes of `path`; its permissions follow the umask. If several processes write
    the same `path`, the last one wins.

    Raises:
        UserError: `path` cannot be a file, such as when it is a folder.
        OSError: the disk is full or read-only, for example. Its `filename` is never the scratch file.
    """
    scratch = handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unlocked(path.parent.glob(f".scratch-*-{escape(path.name)}"))
        scratch, handle = _create(path)
        save(scratch)
        sync(scratch)
        scratch.replace(path)
        with suppress(OSError):  # some file systems cannot sync a folder
            sync(path.parent)
    except BaseException as error:
        if scratch:
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            named = Path(os.fsdecode(error.filename)) if error.filename else None
            # The user knows only `path`, but an error about a file that `save` reads keeps that file's name.
            if named is None or SCRATCH.fullmatch(named.name) or named in path.parents:
                error.filename, error.filename2 = str(path), None
                if error.errno in NOT_A_FILE:
                    raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        raise
    finally:
        if handle is not None:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `write` does."""
    write(path, lambda scratch: scratch.write_text(text, "utf-8"))


def remove_abandoned(folder: Path) -> None:
    """Remove the scratch files of killed processes in `folder` and below."""
    _remove_unlocked(folder.rglob(".scratch-*"))


def remove_if_empty(folder: Path) -> None:
    """Remove a folder, then its parent, unless they hold something or are the working directory."""
    with suppress(OSError):
        for path in (folder, folder.parent):
            if not Path.cwd().is_relative_to(path.absolute()):
                path.rmdir()


def sync(path: Path) -> None:
    """Flush a file or a folder to disk. Otherwise a power cut may keep a file's name and lose its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> tuple[Path, int | None]:
    """Create and lock a scratch file for `path`. Closing the returned handle releases the lock."""
    while True:
        scratch = path.with_name(f".scratch-{secrets.token_hex(8)}-{path.name}")
        handle = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the kernel applies the umask
        if fcntl is None:
            os.close(handle)
            return scratch, None
        with suppress(OSError):  # a file system without locks; _remove_unlocked then removes nothing
            fcntl.flock(handle, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, handle
        os.close(handle)  # another writer removed the file between its creation and the lock


def _remove_unlocked(paths: Iterable[Path]) -> None:
    """Remove those scratch files among `paths` that no process has locked."""
    if fcntl is None:
        return
    for scratch in (path for path in paths if SCRATCH.fullmatch(path.name)):
        with suppress(OSError):  # locked, gone, or owned by another user
            handle = os.open(scratch, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                scratch.unlink()
            finally:
                os.close(handle)
