"""Serve the paper's synthetic tasks: a fixed set of rows, or new ones in every step.

R replicas, N rows, T tasks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from mmoe.arguments import check_integers, check_seeds
from mmoe.data.datamodule import DataModule, Loader, check_loading
from mmoe.data.encode import Dataset, Rows
from mmoe.data.schema import Numeric, Schema, Task
from mmoe.data.synthetic_generator import Device, Generator
from mmoe.errors import UserError

VAL, TEST = -1, -2  # numbers of the blocks of rows that are not training rows
STREAMED_STEPS = 8  # drawn at once: few enough for memory, enough to make their number not matter


class StreamLoader(Loader):
    """Batches of rows that nobody has seen, drawn when they are asked for, on the device.

    Args:
        draw: from the number of a block and of its rows to the block.
        num_rows: of an epoch.
        batch_size, rank, world_size: as in `RowLoader`.
    """

    def __init__(
        self, draw: Callable[[int, int], Rows], num_rows: int, batch_size: int, rank: int, world_size: int
    ) -> None:
        self.draw, self.num_rows, self.rank, self.world_size = draw, num_rows, rank, world_size
        self.global_batch = batch_size * world_size

    def __len__(self) -> int:
        return max(1, self.num_rows // self.global_batch)

    def batches(self) -> Iterator[Rows]:
        """The rank's share of each step's new rows."""
        first_block = self.drawn_epoch * math.ceil(len(self) / STREAMED_STEPS)
        drawn, rows = -1, None
        for step in self._steps(len(self)):
            block, place = divmod(step, STREAMED_STEPS)
            if rows is None or block != drawn:
                drawn, rows = block, self.draw(first_block + block, STREAMED_STEPS * self.global_batch)
            start = place * self.global_batch
            share = slice(start + self.rank, start + self.global_batch, self.world_size)
            yield Rows(*(tensor[..., share, :] for tensor in rows))


class SyntheticData(DataModule):
    """Serve generated rows; with `stream`, those of training are drawn step by step.

    Args:
        generator: what the rows are.
        seeds: of the replicas.
        num_rows: of a training epoch.
        stream: draw the rows of each epoch anew.
        loading: the arguments of `DataModule`.
    """

    def __init__(
        self, generator: Generator, seeds: Sequence[int], num_rows: int, stream: bool, **loading: Any
    ) -> None:
        super().__init__(**loading)
        self.generator, self.seeds, self.num_rows, self.stream = generator, seeds, num_rows, stream

    def train_dataloader(self) -> Loader:
        """Batches of new rows, or of the fixed ones, shuffled."""
        if not self.stream:
            return super().train_dataloader()
        device: Device = self.trainer.strategy.root_device if self.trainer else "cpu"
        rank, size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        draw = partial(self.generator.rows, self.seeds, device=device)
        loader = StreamLoader(draw, self.num_rows, self.batch_size, rank, size)
        loader.fixed = self.overfits
        return loader


def datamodule(
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
    seed: int,
    **loading: Any,
) -> DataModule:
    """Serve generated rows, to each replica its own; the arguments are those of conf/data/synthetic.yaml.

    Args:
        p: as in `Generator`, like the seven that follow.
        c: norm of the weights.
        m: number of sines.
        a: their frequencies.
        b: their phases.
        d: inputs.
        tasks: T.
        noise_variance: of the labels.
        rows: of a training epoch.
        eval_rows: of validation, and of test.
        stream: draw each epoch's rows anew; else there is one set of them.
        replicas: R; replica r has the rows and the task weights of seed + r.
        main_task: its name, `task1` to `taskT`; the tasks are alike, so this only names the first.
        seed: of the first replica.
        loading: further arguments of `DataModule`.

    Raises:
        UserError: an argument is outside its range.
    """
    check_loading(loading)
    check_integers(1, replicas=replicas)
    check_integers(2, rows=rows, eval_rows=eval_rows)
    check_seeds(seed=seed)
    generator = Generator(p, c, m, a, b, d, tasks, noise_variance)
    names = [f"task{k}" for k in range(1, tasks + 1)]
    if main_task not in names:
        raise UserError(f"main_task={main_task}: must be one of {', '.join(names)}")
    names.sort(key=lambda name: name != main_task)
    seeds = range(seed, seed + replicas)
    schema = Schema(
        (),
        tuple(Numeric(f"x{i}", 0.0, 1.0, (-1.0, 0.0, 1.0)) for i in range(1, d + 1)),
        tuple(Task(name, f"y{name.removeprefix('task')}", kind="regression") for name in names),
        rows="synthetic",
        num_rows={"train": rows, "val": eval_rows, "test": eval_rows},
    )
    blocks = {"val": VAL, "test": TEST} if stream else {"train": 0, "val": VAL, "test": TEST}

    def load() -> Dataset:
        counts = {split: schema.num_rows[split] for split in blocks}
        splits = {split: generator.rows(seeds, blocks[split], count) for split, count in counts.items()}
        return Dataset(schema, splits, {split: torch.arange(count) for split, count in counts.items()})

    return SyntheticData(generator, seeds, rows, stream, load=load, seed=seed, **loading)
