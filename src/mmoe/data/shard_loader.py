"""A loader that reads blocks of memory-mapped rows, shuffles each, and cuts it into batches.

B batch.
"""

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from mmoe.data.batch import Batch, concatenate, split, take
from mmoe.data.loader import Loader
from mmoe.data.shards import Piece, ShardedRows
from mmoe.errors import UserError

BLOCK_ROWS = 2**20  # rows that are shuffled together
GATHERED_ROWS = 2**14  # rows that are gathered and encoded at a time; their arrays fit into the CPU's cache


class ShardLoader(Loader):
    """Batches of rows in shards. All rows of an epoch form one sequence, and each rank has one part of it.

    With a seed, each epoch has its own order of pieces. Pieces that follow each other in it are joined into
    blocks of about `BLOCK_ROWS` rows, and the rows of each block are shuffled. Both orders depend only on the
    seed and the epoch. Without a seed, the rows come in order. All batches have B rows, but the last one may
    be smaller, or one row larger.

    While the batches of a block are used, the operating system reads the next block.
    """

    def __init__(
        self,
        rows: ShardedRows,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._encode: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        # All ranks need the same number of steps. The extra row of some ranks joins their last batch.
        full, rest = divmod(self.rows.num_rows // self.world_size, self.batch_size)
        return max(1, full + (rest > 0))

    def state_dict(self) -> dict[str, int]:
        return super().state_dict() | {"world_size": self.world_size, "num_steps": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position of the checkpoint.

        Raises:
            UserError: the checkpoint is from the middle of an epoch with another number of processes.
        """
        before = state.get("world_size", self.world_size)
        if before != self.world_size and 0 < state["step"] < state.get("num_steps", len(self)):
            rule = f"must be {before} to resume in the middle of an epoch with rows on disk"
            raise UserError(f"trainer.devices: the number of processes {rule}, is {self.world_size}")
        super().load_state_dict(state)

    def encode_with(self, encode: Callable[[Batch], Batch]) -> None:
        """Encode the rows part by part, in every epoch."""
        self._encode = encode

    def batches(self) -> Iterator[Batch]:
        """The rank's rows of the epoch, batch by batch."""
        parts: Generator[tuple[Batch, int]] | None = None
        batches: Iterator[Batch] = iter(())
        left = 0  # batches that are already cut
        try:
            for step in self._steps(len(self)):
                parts = parts or self._parts(step, len(self))
                if not left:
                    rows, left = next(parts)
                    batches = split(rows, self.batch_size, left)
                left -= 1
                yield next(batches)
        finally:
            if parts:
                parts.close()

    def _parts(self, first: int, steps: int) -> Generator[tuple[Batch, int]]:
        """Rows in their final order, from step `first` on, with the number of batches to cut them into."""
        begin, end = (self.rows.num_rows * (self.rank + i) // self.world_size for i in (0, 1))
        left = steps - first
        waiting: list[Batch] = []
        for rows in self._rows(begin + first * self.batch_size, end):
            waiting.append(rows)
            count = sum(len(part.labels) for part in waiting) // self.batch_size
            count = min(count, left - 1)  # the last batch has the remaining rows
            if count > 0:
                size = count * self.batch_size
                ready, rest = split(concatenate(waiting), size, 2)
                waiting, left = [rest], left - count
                yield self._encoded(ready), count
        yield self._encoded(concatenate(waiting)), 1

    def _encoded(self, rows: Batch) -> Batch:
        return self._encode(rows) if self._encode else rows

    def _rows(self, begin: int, end: int) -> Iterator[Batch]:
        """The rows from `begin` to `end` in the epoch's sequence, block by block."""
        start = 0
        blocks = self._blocks()
        for number, block in enumerate(blocks):
            stop = start + sum(piece.rows for piece in block)
            if start < end and stop > begin:
                low, high = max(begin - start, 0), min(end, stop) - start
                order = self._order(number, stop - start)
                rows = self.rows.read(block)
                if number + 1 < len(blocks) and stop < end:
                    self.rows.prefetch(blocks[number + 1])
                yield from self._gathered(rows, order, low, high)
            start = stop

    @staticmethod
    def _gathered(rows: Batch, order: Tensor | None, low: int, high: int) -> Iterator[Batch]:
        """The rows of a block from `low` to `high` in its order, `GATHERED_ROWS` at a time."""
        for begin in range(low, high, GATHERED_ROWS):
            end = min(begin + GATHERED_ROWS, high)
            if order is None:
                yield rows.map(lambda tensor, begin=begin, end=end: tensor[begin:end])  # type: ignore[misc]
            else:
                yield take(rows, order[begin:end])

    def _blocks(self) -> list[list[Piece]]:
        """The pieces in the epoch's order, in groups of about `BLOCK_ROWS` rows."""
        pieces = self.rows.pieces
        if self.seed is not None:
            order = torch.randperm(len(pieces), generator=self._generator(0))
            pieces = [pieces[i] for i in order.tolist()]
        blocks: list[list[Piece]] = []
        count = BLOCK_ROWS
        for piece in pieces:
            if count >= BLOCK_ROWS:
                blocks.append([])
                count = 0
            blocks[-1].append(piece)
            count += piece.rows
        return blocks

    def _order(self, block: int, num_rows: int) -> Tensor | None:
        if self.seed is None:
            return None
        return torch.randperm(num_rows, generator=self._generator(1 + block))

    def _generator(self, number: int) -> torch.Generator:
        """A generator for one of the epoch's orders."""
        assert self.seed is not None
        # Distinct for all seeds, epochs and blocks that occur; with a sum, orders would repeat.
        seed = (self.seed * 1_000_003 + self.shuffle_epoch) * 1_000_003 + number
        return torch.Generator().manual_seed(seed % 2**63)
