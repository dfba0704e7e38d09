"""PaddleRec's preprocessed census files: train_all/*.csv and test_all/*.csv, without headers.

A line has the never-married label, the income label, then 499 numbers, most of them one-hot. Those are
stored as codes again: neighbouring 0/1 columns that are never 1 together become one categorical column,
whose levels are their numbers (from 1). So `inputs=standard` has the same 499 inputs in another order,
from a seventeenth of the memory.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmoe.arguments import check_integers, check_seeds
from mmoe.data import cache, headerless_csv
from mmoe.data.datamodule import DataModule, check_loading
from mmoe.data.encode import Dataset, Rows, assemble, fit_numeric
from mmoe.data.schema import Categorical, Schema, Task
from mmoe.errors import UserError

LABELS = ("marital", "income")
NUM_INPUTS = 499
COLUMNS = (*LABELS, *(f"input_{i}" for i in range(1, NUM_INPUTS + 1)))


def datamodule(
    *, dir: str | None, cache_dir: str | None, main_task: str, num_bins: int, split_seed: int, **loading: Any
) -> DataModule:
    """Serve PaddleRec's files of `dir`; other arguments are those of `census.datamodule`.

    Raises:
        UserError: an argument breaks a rule.
    """
    check_loading(loading)
    if main_task not in LABELS:
        raise UserError(f"main_task={main_task}: must be one of {', '.join(LABELS)}")
    check_integers(2, num_bins=num_bins)
    check_seeds(split_seed=split_seed)
    options = {"main_task": main_task, "num_bins": num_bins, "split_seed": split_seed}
    return DataModule(partial(_load, dir, cache.directory(cache_dir), options), **loading)


def _load(dir: str | None, cache_dir: Path, options: dict[str, Any]) -> Dataset:
    if not dir:
        raise UserError("data.dir: must be the directory of train_all/ and test_all/")
    paths = {}
    for split in ("train_all", "test_all"):
        paths[split] = sorted((Path(dir).expanduser() / split).glob("*.csv"))
        if not paths[split]:
            raise UserError(f"{Path(dir) / split}: must hold at least one .csv file")
    digests = {f"{p.parent.name}/{p.name}": cache.sha256(p) for group in paths.values() for p in group}
    build = partial(_encode, paths["train_all"], paths["test_all"], digests, options)
    return cache.cached(cache_dir, "onehot_csv", {"files": digests, **options}, build)


def _encode(
    train: Sequence[Path], rest: Sequence[Path], digests: dict[str, str], options: dict[str, Any]
) -> Dataset:
    tasks = sorted(
        (Task(name, name, ("1",)) for name in LABELS), key=lambda t: t.name != options["main_task"]
    )
    binary = _binary(train)
    groups = _exclusive_groups([*train, *rest], binary)
    numbers = [int(i) + 1 for i in np.flatnonzero(~binary)]
    train_rows, rest_rows = (_read(paths, groups, numbers, tasks) for paths in (train, rest))
    schema = Schema(
        tuple(Categorical(f"inputs_{g[0]}_{g[-1]}", tuple(str(i) for i in g)) for g in groups),
        tuple(
            fit_numeric(f"input_{i}", train_rows.numerics[:, n].double().numpy(), options["num_bins"])
            for n, i in enumerate(numbers)
        ),
        tuple(tasks),
        files=digests,
    )
    sources = (str(train[0].parent), str(rest[0].parent))
    return assemble(schema, train_rows, rest_rows, options["split_seed"], sources)


def _blocks(paths: Sequence[Path]) -> Iterator[tuple[Path, int, np.ndarray]]:
    """Path, rows before, and numbers [rows, 2 + 499] of each block."""
    for path in paths:
        before = 0
        for block in headerless_csv.read_numbers(path, COLUMNS):
            yield path, before, block
            before += len(block)


def _check_binary(path: Path, before: int, block: np.ndarray, columns: np.ndarray) -> None:
    """Raise UserError, with its place, for a value of `columns` of the block that is not 0 or 1."""
    wrong = np.argwhere((block[:, columns] != 0) & (block[:, columns] != 1))
    if len(wrong):
        row, column = wrong[0][0], columns[wrong[0][1]]
        raise UserError(
            f"{path}, row {before + row + 1}, column {column + 1} ({COLUMNS[column]}):"
            f" must be 0 or 1, is {block[row, column]:g}"
        )


def _binary(paths: Sequence[Path]) -> np.ndarray:
    """Which of the 499 inputs are 0 or 1 in every training row."""
    binary = np.ones(NUM_INPUTS, bool)
    for _, _, block in _blocks(paths):
        inputs = block[:, len(LABELS) :]
        binary &= ((inputs == 0) | (inputs == 1)).all(0)
    return binary


def _exclusive_groups(paths: Sequence[Path], binary: np.ndarray) -> list[list[int]]:
    """Numbers (from 1) of neighbouring binary inputs of which no row has two.

    All files are asked, for this is how rows are stored and says nothing of their values: the one-hot
    inputs are the same however they are grouped.
    """
    checked = np.r_[np.arange(len(LABELS)), np.flatnonzero(binary) + len(LABELS)]
    together = np.zeros((NUM_INPUTS, NUM_INPUTS), np.float32)
    for path, before, block in _blocks(paths):
        _check_binary(path, before, block, checked)
        ones = block[:, len(LABELS) :] * binary
        together += ones.T @ ones
    groups: list[list[int]] = []
    for i in np.flatnonzero(binary).tolist():
        neighbour = groups and groups[-1][-1] == i
        if neighbour and not together[i, [j - 1 for j in groups[-1]]].any():
            groups[-1].append(i + 1)
        else:
            groups.append([i + 1])
    return groups


def _read(
    paths: Sequence[Path], groups: Sequence[Sequence[int]], numbers: Sequence[int], tasks: Sequence[Task]
) -> Rows:
    num_levels = sum(map(len, groups))
    codes, numerics, labels = [], [], []
    for _, _, block in _blocks(paths):
        inputs = block[:, len(LABELS) :]
        code = np.full((len(block), len(groups)), num_levels, np.int16)
        offset = 0
        for g, group in enumerate(groups):
            row, level = np.nonzero(inputs[:, [i - 1 for i in group]])
            code[row, g] = offset + level
            offset += len(group)
        codes.append(code)
        numerics.append(inputs[:, [i - 1 for i in numbers]])
        labels.append(block[:, [LABELS.index(task.name) for task in tasks]])
    return Rows(*(torch.from_numpy(np.concatenate(parts)) for parts in (codes, numerics, labels)))
