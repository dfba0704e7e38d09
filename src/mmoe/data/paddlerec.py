"""PaddleRec's preprocessed census files: train_all/*.csv and test_all/*.csv, without headers.

A line has the never-married label, the income label and 499 inputs, most of them one-hot. Neighbouring 0/1
inputs that are never 1 in the same row become one categorical column, whose levels are the numbers of these
inputs, from 1. This takes a seventeenth of the memory. `inputs=standard` restores the 499 inputs, in another
order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmoe.checks.arguments import check_integers, check_seeds
from mmoe.data import cache, headerless_csv
from mmoe.data.batch import Batch, take
from mmoe.data.columns import Categorical
from mmoe.data.datamodule import DataModule
from mmoe.data.file_states import sha256
from mmoe.data.fit_numbers import fit_numeric
from mmoe.data.schema import Schema
from mmoe.data.splits import Dataset, with_modes
from mmoe.errors import ArgumentError, UserError
from mmoe.tasks import Binary, Task

LABELS = ("marital", "income")
NUM_INPUTS = 499
COLUMNS = (*LABELS, *(f"input_{i}" for i in range(1, NUM_INPUTS + 1)))


class PaddleRecData(DataModule):
    """Data module of PaddleRec's files.

    Args:
        dir: directory of train_all/ and test_all/.
        cache_dir, split_seed: see `CensusData`.
        main_task: `income` or `marital`.
        num_bins: see `TableData`.
        batch_size, eval_batch_size, resident, seed: see `DataModule`.

    Raises:
        ArgumentError: an argument breaks a rule.
    """

    def __init__(
        self,
        *,
        dir: str | None,
        cache_dir: str | None,
        main_task: str,
        num_bins: int,
        split_seed: int,
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        resident: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(self._load_or_encode, batch_size, eval_batch_size, resident, seed)
        if main_task not in LABELS:
            raise ArgumentError(f"main_task={main_task}: must be one of {', '.join(LABELS)}")
        if not dir:
            raise ArgumentError("dir: must be the directory of train_all/ and test_all/")
        check_integers(2, num_bins=num_bins)
        check_seeds(split_seed=split_seed)
        self.main_task, self.num_bins, self.split_seed = main_task, num_bins, split_seed
        self.dir = cache.expand_folder("dir", dir)
        self.cache_dir = cache.directory(cache_dir)

    def _load_or_encode(self) -> Dataset:
        """The encoded rows, from the cache if the same files were encoded before with the same options."""
        train, held_out = (_csv_files(self.dir / name) for name in ("train_all", "test_all"))
        digests = {f"{path.parent.name}/{path.name}": sha256(str(path)) for path in (*train, *held_out)}
        options = {"main_task": self.main_task, "num_bins": self.num_bins, "split_seed": self.split_seed}
        build = partial(self._encode, train, held_out, digests)
        return cache.load_or_build(self.cache_dir, "paddlerec", {"files": digests, **options}, build)

    def _encode(self, train: Sequence[Path], held_out: Sequence[Path], digests: dict[str, str]) -> Dataset:
        tasks = [Binary(name, ("1",), name=name) for name in LABELS]
        tasks.sort(key=lambda task: task.name != self.main_task)
        is_binary = _find_binary(train)
        groups = _one_hot_groups([*train, *held_out], is_binary)
        numeric = np.flatnonzero(~is_binary)
        train_rows, held_out_rows = (_read(paths, groups, numeric, tasks) for paths in (train, held_out))
        schema = Schema(
            tuple(
                Categorical(f"inputs_{group[0] + 1}_{group[-1] + 1}", tuple(str(i + 1) for i in group))
                for group in groups
            ),
            tuple(
                fit_numeric(f"input_{i + 1}", train_rows.numbers[:, n].double().numpy(), self.num_bins)
                for n, i in enumerate(numeric)
            ),
            tuple(tasks),
            files=digests,
        )
        return _with_halves(schema, train_rows, held_out_rows, self.split_seed)


def _with_halves(schema: Schema, train: Batch, held_out: Batch, split_seed: int) -> Dataset:
    """The data set of these rows; a random half of PaddleRec's test files is for validation."""
    count = len(held_out.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(split_seed))
    val, test = (half.sort().values for half in (order[: count // 2], order[count // 2 :]))
    splits = {"train": train, "val": take(held_out, val), "test": take(held_out, test)}
    positions = {"train": torch.arange(len(train.labels)), "val": val, "test": test}
    num_rows = {name: len(where) for name, where in positions.items()}
    return Dataset(replace(with_modes(schema, train.levels), num_rows=num_rows), splits, positions)


def _csv_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise UserError(f"{folder}: must hold at least one .csv file")
    return paths


def _blocks(paths: Sequence[Path]) -> Iterator[tuple[Path, int, np.ndarray]]:
    """Blocks of rows: the path, the number of rows before the block, and the block [rows, 2 + 499]."""
    for path in paths:
        before = 0
        for block in headerless_csv.read_numbers(path, COLUMNS):
            yield path, before, block
            before += len(block)


def _find_binary(paths: Sequence[Path]) -> np.ndarray:
    """Which of the 499 inputs are 0 or 1 in every training row."""
    is_binary = np.ones(NUM_INPUTS, bool)
    for _, _, block in _blocks(paths):
        inputs = block[:, len(LABELS) :]
        is_binary &= ((inputs == 0) | (inputs == 1)).all(0)
    return is_binary


def _one_hot_groups(paths: Sequence[Path], is_binary: np.ndarray) -> list[list[int]]:
    """Groups of neighbouring binary inputs, counted from 0, that are never 1 in the same row.

    All rows decide the grouping, including the test rows. This leaks nothing, because grouping only changes
    how rows are stored: the 499 inputs stay the same.

    Raises:
        UserError: a label is not 0 or 1, or an input that is 0 or 1 in all training rows has another value in
            the test files.
    """
    checked = np.r_[np.arange(len(LABELS)), np.flatnonzero(is_binary) + len(LABELS)]
    co_occurrences = np.zeros((NUM_INPUTS, NUM_INPUTS), np.float32)
    for path, before, block in _blocks(paths):
        wrong = np.argwhere((block[:, checked] != 0) & (block[:, checked] != 1))
        if len(wrong):
            row, column = wrong[0][0], checked[wrong[0][1]]
            where = f"{path}, row {before + row + 1}, column {column + 1} ({COLUMNS[column]})"
            raise UserError(f"{where}: must be 0 or 1, is {block[row, column]:g}")
        ones = block[:, len(LABELS) :] * is_binary
        co_occurrences += ones.T @ ones
    groups: list[list[int]] = []
    for i in np.flatnonzero(is_binary).tolist():
        if groups and groups[-1][-1] == i - 1 and not co_occurrences[i, groups[-1]].any():
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _read(
    paths: Sequence[Path], groups: Sequence[Sequence[int]], numeric: np.ndarray, tasks: Sequence[Task]
) -> Batch:
    offsets = [0, *accumulate(map(len, groups))]
    levels, numbers, labels = [], [], []
    for _, _, block in _blocks(paths):
        inputs = block[:, len(LABELS) :]
        codes = np.full((len(block), len(groups)), offsets[-1], np.int16)
        for g, group in enumerate(groups):
            row, level = np.nonzero(inputs[:, group])
            codes[row, g] = offsets[g] + level
        levels.append(codes)
        numbers.append(inputs[:, numeric])
        labels.append(block[:, [LABELS.index(task.name) for task in tasks]])

    def joined(blocks: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(blocks))

    return Batch(joined(levels), joined(numbers), joined(labels))
