"""Find out whether files have changed, by their digests."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from mmoe.data.data_files import file_errors, file_size, system_of

MAX_HASHED_BYTES = 2**32  # if files are larger in total, only some of their bytes are compared
COMPARED_BYTES = 2**16  # at the start and at the end of a file


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 digest of a file, on this machine or remote.

    Raises:
        UserError: the file cannot be read.
    """
    with file_errors(path):
        system, name = system_of(path)
        with system.open(name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class FileState(NamedTuple):
    """What tells whether a file is the same as before.

    `digest` is the SHA-256 of the content, and `time` is empty. If the files are very large in total, they
    are not read as a whole. Then `digest` is the SHA-256 of the size and of the first and the last
    64 KiB, which include the end of a Parquet footer, and `time` is when the file was changed, or its ETag.
    """

    digest: str
    time: str = ""


def file_states(paths: Sequence[str]) -> list[FileState]:
    """The states of files, on this machine or remote.

    Raises:
        UserError: a file cannot be read.
    """
    total = sum(file_size(path) for path in paths)
    return [FileState(sha256(path)) if total <= MAX_HASHED_BYTES else _quick_state(path) for path in paths]


def _quick_state(path: str) -> FileState:
    with file_errors(path):
        system, name = system_of(path)
        info = system.info(name)
        digest = hashlib.sha256(str(info["size"]).encode())
        with system.open(name, "rb") as file:
            digest.update(file.read(COMPARED_BYTES))
            file.seek(max(0, info["size"] - COMPARED_BYTES))
            digest.update(file.read(COMPARED_BYTES))
    time = next((info[key] for key in ("mtime", "LastModified", "ETag") if info.get(key)), "")
    return FileState(digest.hexdigest(), str(time))
