"""Rows as the few states that their columns are in, which `sparse` multiplies.

B batch, C categorical columns, M numeric columns, L levels of all columns, I inputs, S states.

For each kind of inputs there is a class with `matrix`, the inputs [S, I] that each state gives, and `of`,
the states that the columns of rows are in and how much of each, [B, K] both. Inputs are `of` times `matrix`,
beside the common levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmoe.data.encode import Rows
from mmoe.data.schema import Categorical, Numeric
from mmoe.models.sparse import EncodedRows, Entries, SparseInputs

CHUNK = 2**14  # rows that are encoded at a time
GROUP = 7  # bins that have a state together: about the root of how many a column has


def _firsts(counts: Sequence[int]) -> Tensor:
    """Where each part begins, [parts], of parts with these lengths."""
    return torch.tensor([0, *counts]).cumsum(0)[:-1]


def _padded(columns: Sequence[Tensor]) -> Tensor:
    """Increasing numbers of each column, [M, at least 1], with infinity behind them."""
    return pad_sequence([float32([0.0]), *columns], batch_first=True, padding_value=torch.inf)[1:]


def float32(values: Sequence[float]) -> Tensor:
    """The values as a tensor."""
    return torch.tensor(values, dtype=torch.float32)


class Levels:
    """Each level is a state, but for the most frequent one of a column, which most rows have: `common`."""

    def __init__(self, columns: Sequence[Categorical]) -> None:
        sizes = [len(column.levels) for column in columns]
        modes = [column.levels.index(column.mode) if column.mode else 0 for column in columns]
        self.common = _firsts(sizes) + torch.tensor(modes, dtype=torch.long)  # [C]
        self.matrix = sparse.eye_array(sum(sizes))

    def of(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Levels, but for the common ones; none where one is unseen."""
        return codes, (codes != self.common) & (codes < self.matrix.shape[0])


class Bins:
    """Piecewise-linear bins: a number of n bins has n + 1 states, in which so many are full.

    The full ones are two states, of whole groups and of the others, for that has fewer entries. The next bin,
    or the last, is one of its own, with the share that the number fills.
    """

    def __init__(self, columns: Sequence[Numeric]) -> None:
        edges = [float32(column.bins) for column in columns]
        sizes = [len(edge) - 1 for edge in edges]
        self.first = _firsts([size + 1 for size in sizes])
        self.first_group = _firsts([size // GROUP + 1 for size in sizes])
        widths = [torch.cat([edge.diff(), edge[-1:] - edge[-2]]) for edge in edges]
        self.begin = torch.cat([float32([]), *edges])  # of the bin in part, by state
        self.width = torch.cat([float32([]), *widths])
        self.end = _padded([edge[1:] for edge in edges])
        groups, others, parts = ([np.empty((0, 0))] for _ in range(3))
        for size in sizes:
            full = np.tri(size + 1, size, -1)  # [states, bins]
            groups.append(full[::GROUP])
            others.append(full - full[np.arange(size + 1) // GROUP * GROUP])
            parts.append(np.eye(size)[[*range(size), size - 1]])
        self.matrix = sparse.vstack([sparse.block_diag(blocks) for blocks in (groups, others, parts)])

    def of(self, numerics: Tensor) -> tuple[Tensor, Tensor]:
        """Full groups, full bins beside them, and the bin in part."""
        number = torch.searchsorted(self.end, numerics.T.contiguous(), right=True).T
        state, count = self.first + number, len(self.begin)
        share = (numerics - self.begin[state]) / self.width[state]
        group = self.first_group + number // GROUP
        first = self.matrix.shape[0] - 2 * count
        states = torch.cat([group, first + state, first + count + state], dim=1)
        return states, torch.cat([number >= GROUP, number % GROUP > 0, share], dim=1)


class BinsAndValues:
    """`Bins`, and a state for each frequent number."""

    def __init__(self, columns: Sequence[Numeric]) -> None:
        self.bins = Bins(columns)
        self.first = _firsts([len(column.values) for column in columns])
        self.values = _padded([float32(column.values) for column in columns])
        count = sum(len(column.values) for column in columns)
        self.matrix = sparse.block_diag([self.bins.matrix, sparse.eye_array(count)])

    def of(self, numerics: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the bins, and a one where the number is a frequent one."""
        states, shares = self.bins.of(numerics)
        x, values = numerics.T.contiguous(), self.values
        number = torch.searchsorted(values, x).clamp(max=values.shape[1] - 1)
        equal = (values.gather(1, number) == x).T
        state = self.bins.matrix.shape[0] + self.first + number.T
        return torch.cat([states, state], dim=1), torch.cat([shares, equal], dim=1)


class Scores:
    """Each column is a state, by its z-score."""

    def __init__(self, columns: Sequence[Numeric]) -> None:
        self.mean = float32([column.mean for column in columns])
        self.std = float32([column.std for column in columns])
        self.matrix = sparse.eye_array(len(columns))

    def of(self, numerics: Tensor) -> tuple[Tensor, Tensor]:
        """The z-scores."""
        return torch.arange(numerics.shape[1]).expand_as(numerics), (numerics - self.mean) / self.std


class States:
    """Those of levels and of numbers, side by side."""

    def __init__(self, levels: Levels, numbers: Bins | BinsAndValues | Scores) -> None:
        self.levels, self.numbers = levels, numbers
        self.matrix = sparse.block_diag([levels.matrix, numbers.matrix], format="csr", dtype=np.float32)
        self.matrix.eliminate_zeros()
        self._inputs = Entries.of(self.matrix)

    def encode(self, rows: Rows) -> Rows:
        """Rows with states [N, S] in the place of codes, and in that of numerics what is common, [N, C]."""
        some = zip(torch.split(rows.codes, CHUNK), torch.split(rows.numerics, CHUNK), strict=True)
        encoded: Any = EncodedRows(sparse.vstack([self._matrix_of(*part) for part in some]))
        return rows._replace(codes=encoded, numerics=rows.codes == self.levels.common)

    def sparse_inputs(self, rows: Entries, common: Tensor) -> SparseInputs:
        """The inputs of a batch by its states [B, S], and whether its levels are common, [B, C]."""
        return SparseInputs(rows, self._inputs, common, self.levels.common)

    def of(self, codes: Tensor, numerics: Tensor) -> tuple[Entries, Tensor]:
        """What `sparse_inputs` takes."""
        return Entries.of(self._matrix_of(codes, numerics)), codes == self.levels.common

    def _matrix_of(self, codes: Tensor, numerics: Tensor) -> sparse.csr_array:
        """The rows' states, [B, S], but for the common levels."""
        (levels, ones), (numbers, shares) = self.levels.of(codes), self.numbers.of(numerics)
        states = torch.cat([levels, self.levels.matrix.shape[0] + numbers], dim=1)
        values = torch.cat([ones, shares], dim=1)
        kept = values != 0
        starts = nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
        parts = (part.numpy() for part in (values[kept], states[kept].int(), starts.int()))
        return sparse.csr_array(tuple(parts), shape=(len(codes), self.matrix.shape[0]))
