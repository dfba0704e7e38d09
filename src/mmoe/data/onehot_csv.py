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

from mmoe.data import cache, parse
from mmoe.data.census import sha256, split_in_half
from mmoe.data.datamodule import DataModule
from mmoe.data.encode import Dataset, Rows, check_labels, fit_numeric, take
from mmoe.data.schema import Categorical, Schema, Task

LABELS = ("marital", "income")
NUM_INPUTS = 499
COLUMNS = (*LABELS, *(f"input_{i}" for i in range(1, NUM_INPUTS + 1)))


def datamodule(
    *, dir: str | None, cache_dir: str | None, main_task: str, num_bins: int, split_seed: int, **loading: Any
) -> DataModule:
    """Serve PaddleRec's files of `dir`; other arguments are those of `census.datamodule`.

    Raises:
        ValueError: an argument breaks a rule.
    """
    if main_task not in LABELS:
        raise ValueError(f"main_task={main_task}: must be one of {', '.join(LABELS)}")
    folder = cache.directory(cache_dir)
    return DataModule(partial(_load, dir, folder, num_bins, split_seed), **loading)


def _load(dir: str | None, cache_dir: Path, num_bins: int, split_seed: int) -> Dataset:
    if not dir:
        raise ValueError("data.dir: must be the directory of train_all/ and test_all/")
    paths = {}
    for split in ("train_all", "test_all"):
        paths[split] = sorted((Path(dir).expanduser() / split).glob("*.csv"))
        if not paths[split]:
            raise ValueError(f"{Path(dir) / split}: must hold at least one .csv file")
    digests = {f"{p.parent.name}/{p.name}": sha256(p) for group in paths.values() for p in group}
    key = {"files": digests, "num_bins": num_bins, "split_seed": split_seed}
    build = partial(_encode, paths["train_all"], paths["test_all"], digests, num_bins, split_seed)
    return cache.cached(cache_dir, "onehot_csv", key, build)


def _encode(
    train: Sequence[Path], rest: Sequence[Path], digests: dict[str, str], num_bins: int, split_seed: int
) -> Dataset:
    groups, numbers = _exclusive_groups([*train, *rest])
    train_rows, rest_rows = _read(train, groups, numbers), _read(rest, groups, numbers)
    val, test = split_in_half(len(rest_rows.labels), split_seed)
    rows = {"train": train_rows, "val": take(rest_rows, val), "test": take(rest_rows, test)}
    positions = {"train": torch.arange(len(train_rows.labels)), "val": val, "test": test}
    schema = Schema(
        tuple(Categorical(f"inputs_{g[0]}_{g[-1]}", tuple(str(i) for i in g)) for g in groups),
        tuple(
            fit_numeric(f"input_{i}", train_rows.numerics[:, n].double().numpy(), num_bins)
            for n, i in enumerate(numbers)
        ),
        tuple(Task(name, name, ("1",)) for name in LABELS),
        files=digests,
        num_rows={split: len(where) for split, where in positions.items()},
    )
    for split, part in rows.items():
        folder = train[0].parent if split == "train" else rest[0].parent
        check_labels(part.labels, schema.tasks, f"{folder}, {split} rows")
    return Dataset(schema, rows, positions)


def _blocks(paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels [rows, 2] and inputs [rows, 499] of each block."""
    for path in paths:
        count = 0
        for block in parse.read_numbers(path, COLUMNS):
            labels = block[:, : len(LABELS)]
            wrong = np.argwhere((labels != 0) & (labels != 1))
            if len(wrong):
                row, column = wrong[0].tolist()
                raise ValueError(
                    f"{path}, line {count + row + 1}, column {column + 1} ({LABELS[column]}):"
                    f" must be 0 or 1, is {labels[row, column]:g}"
                )
            count += len(block)
            yield labels, block[:, len(LABELS) :]


def _exclusive_groups(paths: Sequence[Path]) -> tuple[list[list[int]], list[int]]:
    """Numbers (from 1) of neighbouring 0/1 inputs that are never 1 together, and of the other inputs."""
    binary = np.ones(NUM_INPUTS, bool)
    together = np.zeros((NUM_INPUTS, NUM_INPUTS))
    for _, inputs in _blocks(paths):
        binary &= ((inputs == 0) | (inputs == 1)).all(0)
        ones = (inputs == 1).astype(np.float32)
        together += ones.T @ ones
    groups: list[list[int]] = []
    for i in range(NUM_INPUTS):
        if not binary[i]:
            continue
        neighbour = groups and groups[-1][-1] == i
        if neighbour and not together[i, [j - 1 for j in groups[-1]]].any():
            groups[-1].append(i + 1)
        else:
            groups.append([i + 1])
    return groups, [int(i) + 1 for i in np.flatnonzero(~binary)]


def _read(paths: Sequence[Path], groups: Sequence[Sequence[int]], numbers: Sequence[int]) -> Rows:
    num_levels = sum(map(len, groups))
    codes, numerics, labels = [], [], []
    for label, inputs in _blocks(paths):
        code = np.full((len(inputs), len(groups)), num_levels, np.int16)
        offset = 0
        for g, group in enumerate(groups):
            row, level = np.nonzero(inputs[:, [i - 1 for i in group]])
            code[row, g] = offset + level
            offset += len(group)
        codes.append(code)
        numerics.append(inputs[:, [i - 1 for i in numbers]])
        labels.append(label.copy())
    return Rows(*(torch.from_numpy(np.concatenate(parts)) for parts in (codes, numerics, labels)))
