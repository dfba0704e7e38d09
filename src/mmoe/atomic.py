"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, to: Callable[[Path], Any]) -> None:
    """Let `to` write a file beside `path`, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        to(Path(scratch))
        with Path(scratch).open("rb") as file:
            os.fsync(file.fileno())  # or the name may outlive the content in a power cut
        Path(scratch).chmod(0o644)  # mkstemp lets only its user read
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
