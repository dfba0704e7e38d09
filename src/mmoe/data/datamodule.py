"""Serve a data set as slices of tensors: no per-sample Python, no collate, no worker processes.

N rows, B batch, W ranks.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from mmoe.arguments import check_integers, check_seeds
from mmoe.data.encode import Dataset, Rows, split, take
from mmoe.data.schema import Schema
from mmoe.errors import UserError

BLOCK = 2**14  # rows that are gathered at a time: batches are slices of them


class Loader(ABC):
    """What Lightning asks of a loader whose batches depend on the epoch.

    A plain loop over it goes on to the next epoch by itself: each iteration gives another order.
    """

    epoch = 0
    fixed = False  # True: every epoch gives the batches of the first one
    step = 0  # batches of the epoch that were given
    resumed: tuple[int, int] | None = None  # epoch and step of a checkpoint
    batch_sampler = None  # Lightning asks for it beside `sampler`
    _iterated = False  # since the epoch was set

    def __iter__(self) -> Iterator[Rows]:
        if self._iterated:
            self.epoch += 1
        self._iterated = True
        yield from self.batches()

    @abstractmethod
    def batches(self) -> Iterator[Rows]:
        """The batches of the epoch."""

    @property
    def sampler(self) -> Self:
        """Itself: Lightning calls `loader.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch, self._iterated = epoch, False

    @property
    def drawn_epoch(self) -> int:
        """The epoch whose rows, in whose order, are given."""
        return 0 if self.fixed else self.epoch

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, for a checkpoint."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration of that epoch begin where a checkpoint was written."""
        self.set_epoch(state["epoch"])
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

    def batches(self) -> Iterator[Rows]:
        """The rank's share of the epoch's rows, batch by batch."""
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
        device = self.rows.labels.device
        index = torch.arange(begin, end, device=device) if order is None else order[begin:end]
        return take(self.rows, index[self.rank :: self.world_size])

    def _order(self, num_rows: int) -> Tensor | None:
        if self.seed is None:
            return None
        # Seeds of neighbouring runs and epochs must not meet: seed + epoch would give run 1 the
        # orders of run 0, one epoch later.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn_epoch)
        return torch.randperm(num_rows, generator=generator).to(self.rows.labels.device)


def check_loading(given: Mapping[str, Any]) -> None:
    """Raise UserError for an argument that `DataModule` does not have."""
    known = [name for name in inspect.signature(DataModule).parameters if name != "load"]
    for name in given:
        if name not in known:
            raise UserError(f"{name}: is no option of the data; further ones are {', '.join(known)}")


class DataModule(pl.LightningDataModule):
    """Training rows shuffled from `seed`; validation and test rows in the order of their file.

    Args:
        load: gives the data set; called once, when it is first needed.
        batch_size: rows of a training step, on each rank.
        eval_batch_size: rows of a validation, test or prediction step, on each rank.
        resident: keep the rows on the device, so that no step copies from the host.
        seed: of the shuffling.

    Raises:
        UserError: a batch size or the seed is not in its range.
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
        check_seeds(seed=seed)
        if not isinstance(resident, bool):
            raise UserError(f"resident={resident}: must be true or false")
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
        loader.fixed = self.overfits
        return loader

    @property
    def overfits(self) -> bool:
        """Whether the trainer is to see the same few batches in every epoch (`overfit_batches`)."""
        return self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0

    def val_dataloader(self) -> RowLoader:
        """Validation rows in order."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> RowLoader:
        """Test rows in order."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> RowLoader:
        """Test rows in order, as `Trainer.predict` asks for them."""
        return self.test_dataloader()

    def _loader(self, split: str, batch_size: int, seed: int | None = None) -> RowLoader:
        rows = self.dataset.splits[split]
        if self.trainer is None:
            return RowLoader(rows, batch_size, seed)
        num_rows, processes = rows.labels.shape[-2], self.trainer.world_size
        if num_rows < processes:
            raise UserError(
                f"trainer.devices: {processes} processes must each have one of {num_rows} {split} rows"
            )
        if self.resident:
            rows = Rows(*(t.to(self.trainer.strategy.root_device) for t in rows))
        return RowLoader(rows, batch_size, seed, self.trainer.global_rank, self.trainer.world_size)

    def state_dict(self) -> dict[str, int]:
        """What must stay the same when other numbers of processes go on: the rows of a step."""
        return {"global_batch": self.batch_size * self.trainer.world_size} if self.trainer else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Divide the rows of a checkpoint's steps among the processes there are now.

        Raises:
            UserError: they cannot have equal shares.
            SystemExit: the same, in all processes but the first.
        """
        assert self.trainer is not None
        rows, processes = state_dict["global_batch"], self.trainer.world_size
        if rows % processes:
            if not self.trainer.is_global_zero:  # the first process says it
                raise SystemExit(2)
            raise UserError(
                f"trainer.devices: {processes} processes cannot share the run's {rows} rows a step equally"
            )
        self.batch_size = rows // processes

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch of resident rows where it is."""
        return batch if self.resident else super().transfer_batch_to_device(batch, device, dataloader_idx)
