"""Shards of encoded rows: Arrow files that are memory-mapped while a network trains.

A shard holds the rows of one partition of the files. Each of its record batches, here called a piece, has
rows of one split.

N rows, K numbers of a field in a row.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torch.utils.dlpack
from torch import Tensor

from mmoe.data.batch import FIELDS, Batch, concatenate
from mmoe.errors import UserError

# The most rows in a piece. Pieces are small, so that a block of rows that are shuffled together has pieces
# from all parts of the files.
PIECE_ROWS = 2**16


@dataclass(frozen=True)
class LabelRange:
    """The known labels of a task in some rows: their number, the smallest and the largest."""

    count: int = 0
    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: "LabelRange") -> "LabelRange":
        if not (self.count and other.count):
            return self if self.count else other
        return LabelRange(self.count + other.count, min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Piece:
    """A record batch of a shard.

    Attributes:
        file: the name of the shard.
        number: the number of the record batch in the shard.
        split: `train`, `val` or `test`.
        rows: the number of rows.
        checksum: CRC-32 of the values.
        all_known: whether every row has a known label of every task.
        labels: the number and the range of each task's known labels, without those of weight 0.
    """

    file: str
    number: int
    split: str
    rows: int
    checksum: int
    all_known: bool
    labels: tuple[LabelRange, ...]

    def to_plain(self) -> dict[str, Any]:
        """The piece as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Restore a piece from `to_plain`."""
        return cls(**values | {"labels": tuple(LabelRange(**one) for one in values["labels"])})


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes a shard to `path`; the shard will get the name `file`.

    With `has_groups`, all pieces store groups; they are 0 in rows that have none.
    """

    def __init__(self, path: Path, file: str, has_groups: bool) -> None:
        self.path, self.file, self.has_groups = path, file, has_groups
        self.pieces: list[Piece] = []
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, split: str, rows: Batch, positions: np.ndarray) -> None:
        """Write encoded rows of a split, with their positions [N] in the source."""
        for begin in range(0, len(positions), PIECE_ROWS):
            part = slice(begin, begin + PIECE_ROWS)
            self._add_piece(split, rows.map(lambda tensor, part=part: tensor[part]), positions[part])  # type: ignore[misc]

    def _add_piece(self, split: str, rows: Batch, positions: np.ndarray) -> None:
        """Write rows as one record batch."""
        is_known = torch.ones_like(rows.labels, dtype=torch.bool) if rows.known is None else rows.known
        fields = {
            "levels": rows.levels,
            "numbers": rows.numbers,
            "labels": rows.labels,
            "known": is_known.byte(),
        }
        if rows.weights is not None:
            fields["weights"] = rows.weights
        if self.has_groups:
            nothing = torch.zeros(len(positions), 1, dtype=torch.int64)
            fields["groups"] = nothing if rows.groups is None else rows.groups
        arrays = {name: _to_arrow(values) for name, values in fields.items() if values.shape[1]}
        batch = pa.record_batch(arrays | {"positions": pa.array(positions, pa.int64())})
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self.path), batch.schema)
        self._writer.write_batch(batch)
        labels = tuple(label_range(rows, task) for task in range(rows.labels.shape[1]))
        piece = Piece(
            self.file, len(self.pieces), split, len(positions), _checksum(batch), bool(is_known.all()), labels
        )
        self.pieces.append(piece)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def label_range(rows: Batch, task: int) -> LabelRange:
    """The number and the range of a task's known labels, without those of weight 0."""
    labels = rows.labels[:, task]
    is_counted = torch.ones_like(labels, dtype=torch.bool) if rows.known is None else rows.known[:, task]
    if rows.weights is not None:
        is_counted = is_counted & (rows.weights[:, task] > 0)
    labels = labels[is_counted]
    return LabelRange(len(labels), labels.min().item(), labels.max().item()) if len(labels) else LabelRange()


class ShardedRows:
    """The rows of a split in memory-mapped shards, in the order of the source.

    Args:
        folder: the folder of the shards.
        pieces: the pieces of the split.
        blank: a batch of no rows with the widths and types of the fields.
    """

    def __init__(self, folder: Path, pieces: Sequence[Piece], blank: Batch) -> None:
        self.folder, self.pieces = folder, list(pieces)
        self.blank = blank._replace(known=None) if all(piece.all_known for piece in pieces) else blank
        self.num_rows = sum(piece.rows for piece in pieces)
        self._checked: set[Piece] = set()

    def label_range(self, task: int) -> LabelRange:
        """The number and the range of a task's known labels, without those of weight 0."""
        return sum((piece.labels[task] for piece in self.pieces), LabelRange())

    def read(self, pieces: Sequence[Piece]) -> Batch:
        """The rows of some pieces, in memory."""
        return concatenate([self._open(piece)[0] for piece in pieces])

    def prefetch(self, pieces: Sequence[Piece]) -> None:
        """Ask the operating system to read the shards of some pieces soon."""
        if hasattr(os, "posix_fadvise"):
            for file in dict.fromkeys(piece.file for piece in pieces):
                with suppress(OSError), (self.folder / file).open("rb") as shard:
                    os.posix_fadvise(shard.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def first(self, count: int) -> Batch:
        """The first `count` rows, or all rows if there are fewer, in memory."""
        pieces, found = [], 0
        for piece in self.pieces:
            if found < count:
                pieces.append(piece)
                found += piece.rows
        return self.read(pieces).map(lambda tensor: tensor[:count])

    def parts(self) -> Iterator[tuple[Batch, Tensor]]:
        """The pieces, memory-mapped, with the positions [N] of their rows in the source."""
        return map(self._open, self.pieces)

    def _open(self, piece: Piece) -> tuple[Batch, Tensor]:
        """Memory-map a piece. Its checksum is verified when it is first read."""
        path = self.folder / piece.file
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(piece.number)
            is_intact = piece in self._checked or _checksum(batch) == piece.checksum
        except (pa.ArrowException, OSError, ValueError):
            is_intact = False
        if not is_intact:
            raise UserError(f"{path}: missing or damaged; delete the folder, and it is made again")
        self._checked.add(piece)
        tensors: dict[str, Any] = {}
        for name in FIELDS:
            like = getattr(self.blank, name)
            if like is not None:
                is_stored = like.shape[1] > 0
                empty = like.new_empty(piece.rows, 0)
                tensors[name] = _to_tensor(batch[name], like) if is_stored else empty
        return Batch(**tensors), torch.utils.dlpack.from_dlpack(batch["positions"])


def _to_arrow(values: Tensor) -> pa.FixedSizeListArray:
    """Values [N, K] as N lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), values.shape[1])


def _to_tensor(column: pa.FixedSizeListArray, like: Tensor) -> Tensor:
    """The memory-mapped values [N, K] of N lists. They must not be written to."""
    values: Tensor = torch.utils.dlpack.from_dlpack(column.flatten())
    return values.view(like.dtype).reshape(-1, like.shape[1])


def _checksum(batch: pa.RecordBatch) -> int:
    checksum = 0
    for column in batch.columns:
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        checksum = zlib.crc32(values.to_numpy(), checksum)
    return checksum
