"""The paper's synthetic regression tasks (section 3.2), whose relatedness is a number.

R replicas, N rows, D inputs, T tasks, M sines.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmoe.checks import check_finite, check_integers
from mmoe.data.datamodule import DataModule, Loader
from mmoe.data.encode import Dataset, Rows
from mmoe.data.schema import Numeric, Schema, Task

Device = torch.device | str
# Numbers of the blocks of rows that are not training rows, and of what is drawn once.
VAL, TEST, WEIGHTS, SINES = -1, -2, -3, -4
STREAMED_STEPS = 8  # drawn at once: few enough for memory, enough to make their number not matter


@dataclass(frozen=True)
class Generator:
    """Rows of x ~ N(0, I) and y_k = w_k . x + sum_i sin(a_i w_k . x + b_i) + e_k (equations 2 to 4).

    The weights of two tasks have the cosine p and the norm c: w_k = c (L u)_k, with orthonormal u and the
    Cholesky factor L of the matrix of cosines. For two tasks that is the paper's w_1 = c u_1,
    w_2 = c (p u_1 + sqrt(1 - p^2) u_2).

    Args:
        p: cosine between the weights of any two tasks.
        c: norm of the weights.
        m: number of sines.
        a: their m frequencies, shared by the tasks; None draws them from N(0, 1) for each seed.
        b: their m phases, likewise.
        d: D.
        tasks: T.
        noise_variance: of e_k.

    Raises:
        ValueError: an argument is outside its range.
    """

    p: float
    c: float = 1.0
    m: int = 10
    a: Sequence[float] | None = None
    b: Sequence[float] | None = None
    d: int = 100
    tasks: int = 2
    noise_variance: float = 0.01

    def __post_init__(self) -> None:
        check_integers(2, d=self.d, tasks=self.tasks)
        check_integers(0, m=self.m)
        check_finite(0, c=self.c, noise_variance=self.noise_variance)
        check_finite(-1, p=self.p)
        if self.p > 1:
            raise ValueError(f"p={self.p}: must be a cosine in [-1, 1]")
        if self.p < -1 / (self.tasks - 1):
            raise ValueError(
                f"p={self.p}: {self.tasks} tasks cannot all have cosines below {-1 / (self.tasks - 1):.4g}"
            )
        if self.d < self.tasks:
            raise ValueError(f"d={self.d}: must be at least the number of tasks, {self.tasks}")
        for name, values in (("a", self.a), ("b", self.b)):
            if values is not None and len(values) != self.m:
                raise ValueError(f"{name}={list(values)}: must have m={self.m} values")
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values or ()):
                raise ValueError(f"{name}={list(values or ())}: must be finite numbers")

    def directions(self, seed: int) -> Tensor:
        """Orthonormal u [T, D] of a seed, float64."""
        drawn = torch.randn(self.d, self.tasks, generator=_generator(seed, WEIGHTS), dtype=torch.float64)
        columns: Tensor = torch.linalg.qr(drawn).Q
        return columns.T

    def weights(self, seed: int) -> Tensor:
        """Task weights w [T, D] of a seed, float64."""
        mixing = torch.zeros(self.tasks, self.tasks, dtype=torch.float64)
        for k in range(self.tasks):  # Cholesky's algorithm, which p = 1 does not stop
            rest = 1 - mixing[k, :k].square().sum().item()
            mixing[k, k] = math.sqrt(max(rest, 0.0))
            if rest > 1e-12:
                mixing[k + 1 :, k] = (self.p - mixing[k + 1 :, :k] @ mixing[k, :k]) / mixing[k, k]
        return self.c * mixing @ self.directions(seed)

    def sines(self, seed: int) -> tuple[Tensor, Tensor]:
        """Frequencies and phases of a seed, [M] each."""
        drawn = torch.randn(2, self.m, generator=_generator(seed, SINES))
        a, b = (drawn[i] if v is None else torch.tensor(v) for i, v in enumerate((self.a, self.b)))
        return a.float(), b.float()

    def rows(self, seeds: Sequence[int], block: int, num_rows: int, device: Device = "cpu") -> Rows:
        """Block number `block` of each seed: the same on every call, whatever the other seeds are.

        Returns:
            Rows with x as numerics [R, N, D] and labels [R, N, T], on the device that they are drawn on;
            without R where there is one seed.
        """
        x = torch.empty(len(seeds), num_rows, self.d, device=device)
        noise = torch.empty(len(seeds), num_rows, self.tasks, device=device)
        for r, seed in enumerate(seeds):
            generator = _generator(seed, block, device)
            x[r].normal_(generator=generator)
            noise[r].normal_(generator=generator)
        weights = torch.stack([self.weights(seed) for seed in seeds]).to(x)
        a, b = (torch.stack(part).to(x) for part in zip(*map(self.sines, seeds), strict=True))  # [R, M]
        labels = self.signal(torch.einsum("rnd,rtd->rnt", x, weights), a, b)
        labels += math.sqrt(self.noise_variance) * noise
        rows = Rows(x.new_empty(len(seeds), num_rows, 0, dtype=torch.int16), x, labels)
        return rows if len(seeds) > 1 else Rows(*(tensor[0] for tensor in rows))

    @staticmethod
    def signal(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Labels without noise, s + sum_i sin(a_i s + b_i) of s [R, N, T], with a and b [R, M]."""
        angles = torch.einsum("rnt,rm->rntm", s, a) + b[:, None, None]
        return s + angles.sin().sum(-1)


def _generator(seed: int, block: int, device: Device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed((seed * 1_000_003 + block) % 2**63)


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

    def __iter__(self) -> Iterator[Rows]:
        first_block = self.epoch * math.ceil(len(self) / STREAMED_STEPS)
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
        return StreamLoader(draw, self.num_rows, self.batch_size, rank, size)


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
        ValueError: an argument is outside its range.
    """
    check_integers(2, rows=rows, eval_rows=eval_rows)
    check_integers(0, seed=seed)
    generator = Generator(p, c, m, a, b, d, tasks, noise_variance)
    names = [f"task{k}" for k in range(1, tasks + 1)]
    if main_task not in names:
        raise ValueError(f"main_task={main_task}: must be one of {', '.join(names)}")
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
