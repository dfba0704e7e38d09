"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, to: Callable[[Path], Any]) -> None:
    """Let `to` write a file beside `path`, then rename it.

    Raises:
        OSError: the disk is full or read-only, say; its `filename` is `path`.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        to(Path(scratch))
        with Path(scratch).open("rb") as file:
            os.fsync(file.fileno())  # or the name may outlive the content in a power cut
        Path(scratch).chmod(0o644)  # mkstemp lets only its user read
        Path(scratch).replace(path)
    except BaseException as error:
        if scratch:
            Path(scratch).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # rather than the scratch file's, or none
        raise
