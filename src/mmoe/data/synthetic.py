"""The data module of the paper's synthetic tasks: a fixed set of training rows, or new rows in every step.

R replicas, T tasks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter

import torch

from mmoe.checks.arguments import check_integers
from mmoe.data.batch import Batch
from mmoe.data.columns import Numeric
from mmoe.data.datamodule import DataModule
from mmoe.data.loader import Loader
from mmoe.data.schema import Schema
from mmoe.data.splits import Dataset
from mmoe.data.synthetic_generator import Device, RowGenerator
from mmoe.errors import ArgumentError
from mmoe.tasks import Regression

SPLIT_BLOCKS = {"train": 0, "val": -1, "test": -2}  # number of the block that holds the fixed rows of a split
STREAMED_STEPS = 8  # steps that are drawn at once; more would take more memory and save little time


class StreamLoader(Loader):
    """Batches of new rows, which are drawn on the device when they are needed.

    Args:
        draw: a function that takes the number of a block and a number of rows, and returns the rows.
        num_rows: rows in an epoch.
        batch_size, rank, world_size: see `RowLoader`.
    """

    def __init__(
        self, draw: Callable[[int, int], Batch], num_rows: int, batch_size: int, rank: int, world_size: int
    ) -> None:
        self.draw, self.num_rows, self.rank, self.world_size = draw, num_rows, rank, world_size
        self.global_batch = batch_size * world_size

    def __len__(self) -> int:
        return max(1, self.num_rows // self.global_batch)

    def encode_with(self, encode: Callable[[Batch], Batch]) -> None:
        """Leave the rows as they are: they have only numbers, and each is used once."""

    def batches(self) -> Iterator[Batch]:
        """The rank's share of the new rows of each step."""
        first_block = self.shuffle_epoch * math.ceil(len(self) / STREAMED_STEPS)
        drawn, rows = -1, None
        for step in self._steps(len(self)):
            block, step_in_block = divmod(step, STREAMED_STEPS)
            if rows is None or block != drawn:
                drawn, rows = block, self.draw(first_block + block, STREAMED_STEPS * self.global_batch)
            start = step_in_block * self.global_batch
            share = slice(start + self.rank, start + self.global_batch, self.world_size)
            yield rows.map(itemgetter((..., share, slice(None))))


class SyntheticData(DataModule):
    """Data module of generated rows; conf/data/synthetic.yaml gives every argument.

    Args:
        p, c, m, a, b, d, tasks, noise_variance: see `RowGenerator`.
        rows: number of training rows in an epoch.
        eval_rows: number of validation rows, and of test rows.
        stream: draw new training rows in every epoch, rather than a fixed set.
        replicas: R. Replica r has the rows and the task weights of seed + r.
        main_task: `task1` to `taskT`. It becomes the first task.
        batch_size, eval_batch_size, resident: see `DataModule`.
        seed: seed of the first replica, and of the shuffling.

    Raises:
        ArgumentError: an argument is outside its range.
    """

    def __init__(
        self,
        *,
        p: float,
        c: float,
        m: int,
        a: Sequence[float] | None,
        b: Sequence[float] | None,
        d: int,
        tasks: int,
        noise_variance: float,
        rows: int,
        eval_rows: int,
        stream: bool,
        replicas: int,
        main_task: str,
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        resident: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(self._draw_dataset, batch_size, eval_batch_size, resident, seed)
        check_integers(1, replicas=replicas)
        check_integers(2, rows=rows, eval_rows=eval_rows)
        self.generator = RowGenerator(p, c, m, a, b, d, tasks, noise_variance)
        self.names = [f"task{k}" for k in range(1, tasks + 1)]
        if main_task not in self.names:
            raise ArgumentError(f"main_task={main_task}: must be one of {', '.join(self.names)}")
        self.names.sort(key=lambda name: name != main_task)
        self.num_rows = {"train": rows, "val": eval_rows, "test": eval_rows}
        self.stream, self.seeds = stream, range(seed, seed + replicas)

    def unencoded_train_loader(self) -> Loader:
        """Batches of new rows, or shuffled batches of the fixed rows."""
        if not self.stream:
            return super().unencoded_train_loader()
        device: Device = self.trainer.strategy.root_device if self.trainer else "cpu"
        rank, size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        draw = partial(self.generator.rows, self.seeds, device=device)
        loader = StreamLoader(draw, self.num_rows["train"], self.batch_size, rank, size)
        loader.repeats_batches = self.repeats_batches
        return loader

    def _draw_dataset(self) -> Dataset:
        """All fixed rows, and their schema."""
        schema = Schema(
            (),
            tuple(Numeric(f"x{i}", 0.0, 1.0, (-1.0, 0.0, 1.0)) for i in range(1, self.generator.d + 1)),
            tuple(Regression(f"y{name.removeprefix('task')}", name=name) for name in self.names),
            row_origin="synthetic",
            num_rows=self.num_rows,
        )
        counts = {name: n for name, n in self.num_rows.items() if name != "train" or not self.stream}
        splits = {name: self.generator.rows(self.seeds, SPLIT_BLOCKS[name], n) for name, n in counts.items()}
        return Dataset(schema, splits, {name: torch.arange(n) for name, n in counts.items()})
