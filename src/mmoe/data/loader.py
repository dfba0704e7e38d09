"""Loaders that cut batches from rows in memory, without Python code for each row and without workers.

B batch, W ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

import torch

from mmoe.data.batch import Batch, split, take

BLOCK = 2**14  # rows that are gathered at a time and then cut into batches


class Loader(ABC):
    """A loader whose batches depend on the epoch, with the interface that Lightning expects.

    Lightning sets the epoch. Outside Lightning, the second iteration moves on to the next epoch, and so on.
    """

    epoch = 0
    repeats_batches = False  # whether every epoch has the batches of the first one
    step = 0  # number of batches that this epoch has returned so far
    resumed: tuple[int, int] | None = None  # epoch and step of a checkpoint
    batch_sampler = None  # Lightning reads this and `sampler`
    _iterated = False  # whether an iteration began after the epoch was set

    def __iter__(self) -> Iterator[Batch]:
        if self._iterated:
            self.epoch += 1
        self._iterated = True
        yield from self.batches()

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """The batches of the epoch."""

    @abstractmethod
    def encode_with(self, encode: Callable[[Batch], Batch]) -> None:
        """Pass the rows through `encode` before they are cut into batches."""

    @property
    def sampler(self) -> Self:
        """Itself, because Lightning calls `loader.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch, self._iterated = epoch, False

    @property
    def shuffle_epoch(self) -> int:
        """The epoch that seeds the random order: always 0 if every epoch repeats the same batches."""
        return 0 if self.repeats_batches else self.epoch

    def state_dict(self) -> dict[str, int]:
        """The position, for a checkpoint."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the epoch of the checkpoint. Its next iteration begins at the step of the checkpoint."""
        self.set_epoch(state["epoch"])
        self.resumed = (state["epoch"], state["step"])

    def _steps(self, count: int) -> Iterator[int]:
        """The numbers of the `count` steps of an epoch. A resumed epoch has only the remaining ones."""
        epoch, step = self.resumed or (None, 0)
        self.resumed = None
        for number in range(step if epoch == self.epoch else 0, count):
            self.step = number + 1
            yield number


class RowLoader(Loader):
    """Batches of rows. Each of `world_size` ranks gets its share of every global batch of W*B rows.

    With a seed, each epoch has its own random order, which depends only on the seed and the epoch. Without a
    seed, the rows come in order. The last batch may be smaller, or one row larger.
    """

    def __init__(
        self, rows: Batch, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.rows, self.seed, self.rank, self.world_size = rows, seed, rank, world_size
        self.batch_size, self.global_batch = batch_size, batch_size * world_size

    def __len__(self) -> int:
        # All ranks need the same number of steps. If fewer rows than ranks remain, they join the last batch.
        full, rest = divmod(self.rows.labels.shape[-2], self.global_batch)
        return max(1, full + (rest >= self.world_size))

    def encode_with(self, encode: Callable[[Batch], Batch]) -> None:
        """Encode all rows, once."""
        self.rows = encode(self.rows)

    def batches(self) -> Iterator[Batch]:
        """The rank's share of the epoch's rows, batch by batch."""
        return self._ordered_batches() if self.seed is None else self._shuffled_batches(self.seed)

    def _ordered_batches(self) -> Iterator[Batch]:
        steps = len(self)
        if self.world_size == 1:
            batches = list(split(self.rows, self.batch_size, steps, is_training=False))
            for step in self._steps(steps):
                yield batches[step]
            return
        for step in self._steps(steps):
            begin, end = self._bounds(step, 1)
            index = torch.arange(begin + self.rank, end, self.world_size, device=self.rows.labels.device)
            yield take(self.rows, index)

    def _shuffled_batches(self, seed: int) -> Iterator[Batch]:
        # With seed + epoch, each order of seed 1 would be the order that seed 0 has one epoch later.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.shuffle_epoch)
        order = torch.randperm(self.rows.labels.shape[-2], generator=generator)
        order = order.to(self.rows.labels.device)
        batches: Iterator[Batch] = iter(())
        left = 0  # steps whose batches are already cut
        for step in self._steps(len(self)):
            if not left:
                left = min(max(1, BLOCK // self.global_batch), len(self) - step)
                begin, end = self._bounds(step, left)
                rows = take(self.rows, order[begin + self.rank : end : self.world_size])
                batches = split(rows, self.batch_size, left)
            left -= 1
            yield next(batches)

    def _bounds(self, step: int, count: int) -> tuple[int, int]:
        """The bounds of the rows of all ranks in `count` steps from `step` on."""
        is_last = step + count == len(self)
        end = self.rows.labels.shape[-2] if is_last else (step + count) * self.global_batch
        return step * self.global_batch, end
