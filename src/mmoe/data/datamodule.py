"""Serve a data set as slices of tensors: no per-sample Python, no collate, no worker processes.

N rows, B batch, W ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from mmoe.checks import check_integers
from mmoe.data.encode import Dataset, Rows, split, take
from mmoe.data.schema import Schema

BLOCK = 2**14  # rows that are gathered at a time: batches are slices of them


class Loader(ABC):
    """What Lightning asks of a loader whose batches depend on the epoch."""

    epoch = 0
    step = 0  # batches of the epoch that were given
    resumed: tuple[int, int] | None = None  # epoch and step of a checkpoint
    batch_sampler = None  # Lightning asks for it beside `sampler`

    @abstractmethod
    def __iter__(self) -> Iterator[Rows]:
        """The batches of the epoch."""

    @property
    def sampler(self) -> Self:
        """Itself: Lightning calls `loader.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, for a checkpoint."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration of that epoch begin where a checkpoint was written."""
        self.resumed = (state["epoch"], state["step"])

    def _steps(self, count: int) -> Iterator[int]:
        """The steps of an epoch of `count`, or what is left of it."""
        epoch, step = self.resumed or (None, 0)
        self.resumed = None
        for left in range(step if epoch == self.epoch else 0, count):
            self.step = left + 1
            yield left


class RowLoader(Loader):
    """Batches of rows; each of `world_size` ranks takes its share of every global batch of W*B rows.

    With a seed, the order is drawn anew each epoch from seed and epoch alone, so it can be had again;
    without one, rows come in order and the last batch may be smaller.
    """

    def __init__(
        self, rows: Rows, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.rows, self.seed, self.rank, self.world_size = rows, seed, rank, world_size
        self.batch_size, self.global_batch = batch_size, batch_size * world_size

    def __len__(self) -> int:
        # A remainder with fewer rows than ranks joins the batch before it: no rank may lack a step.
        full, rest = divmod(self.rows.labels.shape[-2], self.global_batch)
        return max(1, full + (rest >= self.world_size))

    def __iter__(self) -> Iterator[Rows]:
        num_rows, steps = self.rows.labels.shape[-2], len(self)
        order = self._order(num_rows)
        batches: Iterator[Rows] = iter(())
        left = 0  # steps of which a block was made
        for step in self._steps(steps):
            if not left:
                left = min(max(1, BLOCK // self.global_batch), steps - step)
                begin, end = (num_rows if s == steps else s * self.global_batch for s in (step, step + left))
                batches = split(self._share(order, begin, end), self.batch_size, left)
            left -= 1
            yield next(batches)

    def _share(self, order: Tensor | None, begin: int, end: int) -> Rows:
        """The rank's rows of the steps whose rows are `begin` to `end`."""
        if order is None and self.world_size == 1:
            return Rows(*(tensor[..., begin:end, :] for tensor in self.rows))
        index = torch.arange(begin, end) if order is None else order[begin:end]
        return take(self.rows, index[self.rank :: self.world_size])

    def _order(self, num_rows: int) -> Tensor | None:
        if self.seed is None:
            return None
        # Seeds of neighbouring runs and epochs must not meet: seed + epoch would give run 1 the
        # orders of run 0, one epoch later.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(num_rows, generator=generator).to(self.rows.labels.device)


class DataModule(pl.LightningDataModule):
    """Training rows shuffled from `seed`; validation and test rows in the order of their file.

    Args:
        load: gives the data set; called once, when it is first needed.
        batch_size: rows of a training step, on each rank.
        eval_batch_size: rows of a validation, test or prediction step, on each rank.
        resident: keep the rows on the device, so that no step copies from the host.
        seed: of the shuffling.

    Raises:
        ValueError: a batch size or the seed is not in its range.
    """

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
        check_integers(0, seed=seed)
        self._load = load
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.resident, self.seed = resident, seed
        self.encode: Callable[[Rows, int], Rows] | None = None  # training rows, by the size of a batch

    @cached_property
    def dataset(self) -> Dataset:
        """The rows and their schema, loaded when first asked for."""
        return self._load()

    @property
    def schema(self) -> Schema:
        """Columns and tasks of the data set."""
        return self.dataset.schema

    def train_dataloader(self) -> Loader:
        """Shuffled batches of the training rows."""
        loader = self._loader("train", self.batch_size, self.seed)
        if self.encode:
            loader.rows = self.encode(loader.rows, self.batch_size)
        return loader

    def val_dataloader(self) -> RowLoader:
        """Validation rows in order."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> RowLoader:
        """Test rows in order."""
        return self._loader("test", self.eval_batch_size)

    def _loader(self, split: str, batch_size: int, seed: int | None = None) -> RowLoader:
        rows = self.dataset.splits[split]
        if self.trainer is None:
            return RowLoader(rows, batch_size, seed)
        if self.resident:
            rows = Rows(*(t.to(self.trainer.strategy.root_device) for t in rows))
        return RowLoader(rows, batch_size, seed, self.trainer.global_rank, self.trainer.world_size)

    def state_dict(self) -> dict[str, int]:
        """What must stay the same when other numbers of processes go on: the rows of a step."""
        return {"global_batch": self.batch_size * self.trainer.world_size} if self.trainer else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Divide the rows of a checkpoint's steps among the processes there are now.

        Raises:
            ValueError: they cannot have equal shares.
            SystemExit: the same, in all processes but the first.
        """
        assert self.trainer is not None
        rows, processes = state_dict["global_batch"], self.trainer.world_size
        if rows % processes:
            if not self.trainer.is_global_zero:  # the first process says it
                raise SystemExit(2)
            raise ValueError(
                f"trainer.devices: {processes} processes cannot share the run's {rows} rows a step equally"
            )
        self.batch_size = rows // processes

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch of resident rows where it is."""
        return batch if self.resident else super().transfer_batch_to_device(batch, device, dataloader_idx)
