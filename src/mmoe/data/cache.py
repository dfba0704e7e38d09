"""A cache of encoded rows: each set of files and options is encoded once and stored in one file."""

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
from mmoe.data.batch import FIELDS, Batch
from mmoe.data.data_files import expand_home
from mmoe.data.schema import Schema
from mmoe.data.splits import Dataset
from mmoe.errors import ArgumentError, UserError, is_disk_error

log = logging.getLogger(__name__)

FORMAT = 16  # increment this when the same files and options are stored or encoded differently
# errno values of a missing file, and of a path that is not a directory and cannot become one.
NOT_A_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)


class CorruptFile(Exception):
    """A cache file does not hold what this version writes for the same files and options."""


def directory(configured: str | None) -> Path:
    """The configured cache directory, or the user's default one."""
    return expand_folder("cache_dir", configured) if configured else Path(platformdirs.user_cache_dir("mmoe"))


def expand_folder(argument: str, path: str) -> Path:
    """The folder that an argument names, with a leading `~` or `~USER` replaced by the home directory.

    Raises:
        ArgumentError: there is no such user.
    """
    try:
        return expand_home(path)
    except UserError as error:
        raise ArgumentError(f"{argument}={error}") from None


def load_or_build(folder: Path, name: str, key: dict[str, Any], build: Callable[[], Dataset]) -> Dataset:
    """Load the data set of this `key` from `folder`, or build and store it.

    `key` must hold everything that the data set depends on. One process builds the file, and the others wait
    for it. A corrupt file is rebuilt, with a warning. Nothing is written if the file is valid.

    Raises:
        UserError: `folder` cannot be a directory.
        OSError: the file cannot be written, or the disk cannot be read.
    """
    key_text = _key_text(key)
    path = entry(folder, name, key).with_suffix(".npz")
    with suppress(CorruptFile):
        if found := _read(path, key_text):  # this needs no lock, because files appear whole
            return found
    with lock(path):
        try:
            if found := _read(path, key_text):  # another process may have written the file meanwhile
                return found
        except CorruptFile as error:
            log.warning("%s: the cached rows are corrupt (%s); rebuilding them", path, error)
        dataset = build()
        write(path, partial(_save, dataset, key_text))
        return dataset


def entry(folder: Path, name: str, key: dict[str, Any]) -> Path:
    """The path of what is stored for this `key`."""
    return folder / f"{name}-{hashlib.sha256(_key_text(key).encode()).hexdigest()[:16]}"


def _key_text(key: dict[str, Any]) -> str:
    return json.dumps([FORMAT, key], sort_keys=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time write `path`.

    Raises:
        UserError: the folder of `path` cannot be a directory.
        OSError: the folder cannot be created or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(f"{path}.lock").acquire()
    except OSError as error:
        if error.errno not in NOT_A_DIRECTORY:
            raise
        rule = f"must be a writable directory ({error.strerror})"
        raise UserError(f"data.cache_dir={path.parent}: {rule}") from None
    with held:
        yield


def _save(dataset: Dataset, key_text: str, path: Path) -> None:
    arrays = {"schema": np.array(dataset.schema.to_json())}
    for split, rows in dataset.splits.items():
        given = {field: getattr(rows, field) for field in FIELDS}
        arrays |= {f"{split}.{field}": value.numpy() for field, value in given.items() if value is not None}
        arrays[f"{split}.positions"] = dataset.positions[split].numpy()
    np.savez(path, allow_pickle=False, digest=np.array(_digest(key_text, arrays)), **arrays)


def _read(path: Path, key_text: str) -> Dataset | None:
    """Read the file that `_save` wrote for this key; None if there is none.

    Raises:
        CorruptFile: the file holds anything else.
        OSError: the disk cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop("digest")) != _digest(key_text, arrays):
            raise CorruptFile("its digest is wrong")
        schema = Schema.from_json(str(arrays.pop("schema")))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # a corrupt zip raises almost anything, even NotImplementedError
        if isinstance(error, OSError) and error.errno in NOT_A_DIRECTORY:
            return None
        if is_disk_error(error):
            raise
        raise CorruptFile(str(error) or type(error).__name__) from error
    end = ".positions"
    positions = {name.removesuffix(end): tensors[name] for name in tensors if name.endswith(end)}
    splits = {}
    for split in positions:
        found: Any = {field: tensors.get(f"{split}.{field}") for field in FIELDS}
        splits[split] = Batch(**found)
    return Dataset(schema, splits, positions)


def _digest(key_text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of the key and of the names, types, shapes and values of the arrays."""
    digest = hashlib.sha256(key_text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
