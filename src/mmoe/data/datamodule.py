"""The data module: a data set's training, validation and test rows as loaders for Lightning.

N rows, T tasks.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor

from mmoe.checks.arguments import check_integers, check_seeds
from mmoe.data.batch import Batch, concatenate
from mmoe.data.loader import Loader, RowLoader
from mmoe.data.schema import Schema
from mmoe.data.shard_loader import ShardLoader
from mmoe.data.shards import ShardedRows
from mmoe.data.splits import Dataset
from mmoe.errors import USER_ERROR, ArgumentError, UserError


class DataModule(pl.LightningDataModule):
    """Training rows shuffled by `seed`; validation and test rows in the order of their file.

    Args:
        load: loads the data set; it is called once, when the data set is first needed.
        batch_size: rows of a training step, on each rank.
        eval_batch_size: rows of a validation, test or prediction step, on each rank.
        resident: keep all rows on the device, so that no step copies from the host.
        seed: seed of the shuffling.

    Raises:
        ArgumentError: a batch size or the seed is out of range.
    """

    takes_schema = False  # True: the constructor takes a run's `schema` to encode with
    validation_fraction: float | None = None  # the share of the rows that a rule takes for validation

    def __init__(
        self,
        load: Callable[[], Dataset],
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        resident: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integers(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_seeds(seed=seed)
        if not isinstance(resident, bool):
            raise ArgumentError(f"resident={resident}: must be true or false")
        self._load = load
        self._encode_inputs: Callable[[Batch, int], Batch] | None = None
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.resident, self.seed = resident, seed

    @classmethod
    def implied_changes(cls, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Further settings to change when an evaluation on other rows changes those in `changes`."""
        return {}

    @cached_property
    def dataset(self) -> Dataset:
        """The rows and their schema, loaded on first use."""
        return self._load()

    def __str__(self) -> str:
        """The class and the number of rows of each split. Lightning's method fails for loaders of tensors."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.schema.num_rows.items())
        return f"{type(self).__name__}: {counts}"

    @property
    def schema(self) -> Schema:
        """Columns and tasks of the data set."""
        return self.dataset.schema

    def raw_column(self, name: str, split: str) -> pd.Series | None:
        """A column of a split's raw rows, which is read from the files again; None if there is none."""
        return None

    def encode_inputs_with(self, encode: Callable[[Batch, int], Batch] | None) -> None:
        """Pass the rows of all loaders through `encode`, which gets rows and the size of a batch.

        Rows in memory are encoded once, and rows in shards part by part in every epoch. That is faster than
        encoding each batch in its step. See `Network.encode_rows`. None: the rows stay as they are.
        """
        self._encode_inputs = encode

    def _encoded(self, loader: Loader, batch_size: int) -> Loader:
        if self._encode_inputs:
            encode = self._encode_inputs
            loader.encode_with(lambda rows: encode(rows, batch_size))
        return loader

    def train_dataloader(self) -> Loader:
        """Shuffled batches of the training rows."""
        return self._encoded(self.unencoded_train_loader(), self.batch_size)

    def unencoded_train_loader(self) -> Loader:
        """Shuffled batches of the training rows, which `encode_inputs_with` does not change."""
        loader = self._loader("train", self.batch_size, self.seed)
        loader.repeats_batches = self.repeats_batches
        return loader

    def val_dataloader(self) -> Loader:
        """Validation rows in order."""
        return self._encoded(self._loader("val", self.eval_batch_size), self.eval_batch_size)

    def test_dataloader(self) -> Loader:
        """Test rows in order."""
        return self._encoded(self._loader("test", self.eval_batch_size), self.eval_batch_size)

    def predict_dataloader(self) -> Loader:
        """Test rows in order, for `Trainer.predict`."""
        return self.test_dataloader()

    def _loader(self, split: str, batch_size: int, seed: int | None = None) -> Loader:
        rows, trainer = self.dataset.splits[split], self.trainer
        if trainer is None:
            return loader_of(rows, batch_size, seed)
        num_rows, processes = count_rows(rows), trainer.world_size
        if num_rows < processes:
            rule = f"{processes} processes need at least {processes} {split} rows, there are {num_rows}"
            raise UserError(f"trainer.devices: {rule}")
        if self.resident and isinstance(rows, Batch):
            rows = rows.map(lambda tensor: tensor.to(trainer.strategy.root_device))
        return loader_of(rows, batch_size, seed, trainer.global_rank, processes)

    @property
    def repeats_batches(self) -> bool:
        """Whether every epoch has the same few batches (the trainer's `overfit_batches`)."""
        return self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0

    def state_dict(self) -> dict[str, int]:
        """The number of rows that all processes together train on in a step."""
        return {"global_batch": self.batch_size * self.trainer.world_size} if self.trainer else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Set the batch size so that a step of all processes has as many rows as in the checkpoint.

        Raises:
            UserError: the rows cannot be shared equally.
            SystemExit: the same error in all processes but the first.
        """
        assert self.trainer is not None
        rows, processes = state_dict["global_batch"], self.trainer.world_size
        if rows % processes:
            if not self.trainer.is_global_zero:  # the first process reports the error
                raise SystemExit(USER_ERROR)
            what = f"the run's {rows} rows per step cannot be divided equally among {processes} processes"
            raise UserError(f"trainer.devices: {what}")
        self.batch_size = rows // processes

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch of resident rows where it is."""
        is_there = isinstance(batch, Batch) and batch.labels.device == device
        return batch if is_there else super().transfer_batch_to_device(batch, device, dataloader_idx)


def loader_of(
    rows: Batch | ShardedRows, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1
) -> Loader:
    """A loader of rows in memory or in shards."""
    kind = RowLoader if isinstance(rows, Batch) else ShardLoader
    return kind(rows, batch_size, seed, rank, world_size)  # type: ignore[arg-type]


def load_rows(rows: Batch | ShardedRows, max_from_shards: int) -> Batch:
    """All rows if they are in memory; the first `max_from_shards` rows if they are in shards."""
    return rows if isinstance(rows, Batch) else rows.first(max_from_shards)


def count_rows(rows: Batch | ShardedRows) -> int:
    """The number of rows in memory or in shards."""
    return rows.labels.shape[-2] if isinstance(rows, Batch) else rows.num_rows


def labels_of(data: Any, split: str, count: int) -> tuple[Tensor, Tensor | None]:
    """The first `count` labels of `val` or `test`, and which are known, [N, T] each; see `Batch`.

    The labels are not rounded to the trainer's precision.
    """
    if isinstance(data, DataModule):
        rows = load_rows(data.dataset.splits[split], count)
    else:
        rows = concatenate([batch.map(Tensor.cpu) for batch in getattr(data, f"{split}_dataloader")()])
    known = None if rows.known is None else rows.known[..., :count, :]
    return rows.labels[..., :count, :], known
