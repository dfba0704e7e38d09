"""Encoded rows on disk: made once for the same files and options, whole or not at all."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from filelock import FileLock

from mmoe.data.encode import Dataset, Rows
from mmoe.data.schema import Schema

log = logging.getLogger(__name__)

FORMAT = 2  # raise it when the same files and options give other tensors


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
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            try:
                return _read(path)
            except Exception as error:  # a broken zip raises nearly anything, NotImplementedError too
                log.warning("%s: the cached rows are corrupt (%s); rebuilding them", path, error)
        dataset = build()
        _write(path, dataset)
        return dataset


def _write(path: Path, dataset: Dataset) -> None:
    arrays = {"schema": np.array(dataset.schema.to_json())}
    for split, rows in dataset.rows.items():
        arrays |= {f"{split}.{field}": tensor.numpy() for field, tensor in rows._asdict().items()}
        arrays[f"{split}.positions"] = dataset.positions[split].numpy()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(file, allow_pickle=False, **arrays)
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)


def _read(path: Path) -> Dataset:
    """Read a file that `_write` wrote; its zip checksums find any changed byte."""
    with np.load(path, allow_pickle=False) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    schema = Schema.from_json(str(content.pop("schema")))
    tensors = {name: torch.from_numpy(array) for name, array in content.items()}
    splits = [name.removesuffix(".positions") for name in tensors if name.endswith(".positions")]
    rows = {s: Rows(*(tensors[f"{s}.{field}"] for field in Rows._fields)) for s in splits}
    return Dataset(schema, rows, {s: tensors[f"{s}.positions"] for s in splits})
