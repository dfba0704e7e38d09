"""Encoded rows on disk: made once for the same files and options, whole or not at all."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from filelock import FileLock

from mmoe.atomic import write
from mmoe.data.encode import Dataset, Rows
from mmoe.data.schema import Schema

log = logging.getLogger(__name__)

FORMAT = 4  # raise it when the same files and options give other tensors


def directory(configured: str | None) -> Path:
    """The configured directory, or the user's cache directory."""
    return Path(configured).expanduser() if configured else Path(platformdirs.user_cache_dir("mmoe"))


def cached(folder: Path, name: str, key: dict[str, Any], build: Callable[[], Dataset]) -> Dataset:
    """The data set that `build` makes, read from `folder` if it was made before with an equal `key`.

    One process builds, others that want the same wait for it. A file that is not whole is rebuilt,
    with a warning.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.npz"
    with lock(path):
        if path.is_file():
            try:
                return _read(path)
            except (PermissionError, MemoryError):
                raise
            except Exception as error:  # a broken zip raises nearly anything, NotImplementedError too
                log.warning("%s: the cached rows are corrupt (%s); rebuilding them", path, error)
        dataset = build()
        write(path, partial(_save, dataset))
        return dataset


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`.

    Raises:
        ValueError: the cache cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield
    except OSError as error:
        raise ValueError(
            f"data.cache_dir={path.parent}: must be a directory that can be written ({error.strerror})"
        ) from None


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(dataset: Dataset, path: Path) -> None:
    arrays = {"schema": np.array(dataset.schema.to_json())}
    for split, rows in dataset.splits.items():
        arrays |= {f"{split}.{field}": tensor.numpy() for field, tensor in rows._asdict().items()}
        arrays[f"{split}.positions"] = dataset.positions[split].numpy()
    np.savez(path, allow_pickle=False, **arrays)


def _read(path: Path) -> Dataset:
    """Read a file that `_save` wrote; its zip checksums find any changed byte."""
    with np.load(path, allow_pickle=False) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    schema = Schema.from_json(str(content.pop("schema")))
    tensors = {name: torch.from_numpy(array) for name, array in content.items()}
    splits = [name.removesuffix(".positions") for name in tensors if name.endswith(".positions")]
    rows = {s: Rows(*(tensors[f"{s}.{field}"] for field in Rows._fields)) for s in splits}
    return Dataset(schema, rows, {s: tensors[f"{s}.positions"] for s in splits})
