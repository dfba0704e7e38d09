"""Encoded rows on disk: made once for the same files and options, whole or not at all."""

import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from filelock import FileLock

from mmoe.atomic import write
from mmoe.data.check_rows import check_rows
from mmoe.data.encode import Dataset, Rows
from mmoe.data.schema import Schema
from mmoe.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 5  # raise it when the same files and options give other tensors
# What the system says of a path that cannot be a directory.
NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)


class Corrupt(Exception):
    """A cache file is not what this version writes for the same files and options."""


def directory(configured: str | None) -> Path:
    """The configured directory, or the user's cache directory.

    Raises:
        UserError: it is `~NAME`, and there is no such user.
    """
    if not configured:
        return Path(platformdirs.user_cache_dir("mmoe"))
    try:
        return Path(configured).expanduser()
    except RuntimeError:
        raise UserError(f"cache_dir={configured}: must start with the name of a user after ~") from None


def cached(folder: Path, name: str, key: dict[str, Any], build: Callable[[], Dataset]) -> Dataset:
    """The data set that `build` makes, read from `folder` if it was made before with an equal `key`.

    One process builds, others that want the same wait for it. A file that is damaged or does not hold rows of
    its schema is rebuilt, with a warning. Nothing is written where the file is there and whole.

    Raises:
        UserError: `folder` cannot be a directory.
        OSError: the file is not there and cannot be written, or the disk cannot be read.
    """
    request = json.dumps([FORMAT, key], sort_keys=True)
    path = folder / f"{name}-{_hexdigest(request)[:16]}.npz"
    with suppress(Corrupt):
        found = _read(path, request)  # without the lock, for the file appears whole
        if found:
            return found
    with lock(path):
        try:
            found = _read(path, request)  # another process may have made it meanwhile
            if found:
                return found
        except Corrupt as error:
            log.warning("%s: the cached rows are corrupt (%s); rebuilding them", path, error)
        dataset = build()
        write(path, partial(_save, dataset, request))
        return dataset


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`.

    Raises:
        UserError: the folder of `path` cannot be a directory.
        OSError: it cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(f"{path}.lock").acquire()
    except OSError as error:
        if error.errno not in NO_DIRECTORY:
            raise
        raise UserError(
            f"data.cache_dir={path.parent}: must be a directory that can be written ({error.strerror})"
        ) from None
    with held:
        yield


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error of a reader of archives is the disk's, rather than one of the archive's content.

    Broken archives raise nearly anything. Their OSErrors have no number, or EINVAL where a broken archive
    names a place before its start.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _hexdigest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _save(dataset: Dataset, request: str, path: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, rows in dataset.splits.items():
        arrays |= {f"{split}.{field}": tensor.numpy() for field, tensor in rows._asdict().items()}
        arrays[f"{split}.positions"] = dataset.positions[split].numpy()
    schema = dataset.schema.to_json()
    digest = _digest(request, schema, arrays)
    np.savez(path, allow_pickle=False, schema=np.array(schema), digest=np.array(digest), **arrays)


def _read(path: Path, request: str) -> Dataset | None:
    """Read a file that `_save` wrote for `request`; None if there is none.

    The checksums of the zip find any changed byte. The digest, and the checks of rows and positions, find a
    file that another program wrote or renamed.

    Raises:
        Corrupt: the file is something else.
        OSError: the disk cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        schema, digest = str(arrays.pop("schema")), str(arrays.pop("digest"))
        if digest != _digest(request, schema, arrays):
            raise Corrupt("the schema or the arrays are not those of these files and options")
        return _dataset(Schema.from_json(schema), arrays)
    except Exception as error:  # a broken zip raises nearly anything, NotImplementedError too
        if isinstance(error, OSError) and error.errno in NO_DIRECTORY:
            return None
        if is_of_the_disk(error):
            raise
        raise Corrupt(str(error) or type(error).__name__) from error


def _digest(request: str, schema: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of all but the values of the arrays: what was asked for, the schema, types and shapes."""
    layout = {name: [str(array.dtype), array.shape] for name, array in arrays.items()}
    return _hexdigest(json.dumps([request, schema, layout], sort_keys=True))


def _dataset(schema: Schema, arrays: Mapping[str, np.ndarray]) -> Dataset:
    """The data set of these arrays.

    Raises:
        Exception: an array is missing, or its values cannot be.
    """
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    splits = [name.removesuffix(".positions") for name in tensors if name.endswith(".positions")]
    rows = {s: Rows(*(tensors[f"{s}.{field}"] for field in Rows._fields)) for s in splits}
    positions = {s: tensors[f"{s}.positions"] for s in splits}
    for split, where in positions.items():
        check_rows(rows[split], schema)
        # One file has the training rows, another one those of validation and test.
        in_file = sum(len(p) for s, p in positions.items() if (s == "train") == (split == "train"))
        if len(where) and not 0 <= where.min() <= where.max() < in_file:
            raise Corrupt(f"{split}: must have positions from 0 to {in_file - 1}")
    return Dataset(schema, rows, positions)
