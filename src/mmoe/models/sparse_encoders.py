"""Encode levels and numbers as `SparseInputs`: the inputs of `encoders`, in factored form.

B batch, P level slots of a row, C columns with one level per row, M numeric columns, I inputs, S rows of the
basis, K entries of a row, D dense inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmoe.data.schema import Schema
from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.models.encoders import float32
from mmoe.models.sparse_inputs import SparseInputs

CHUNK = 2**14  # rows that are encoded at a time, to bound the memory
GROUP = 7  # bins per group; about the square root of a column's number of bins


def _starts(sizes: Sequence[int]) -> Tensor:
    """Where each part begins if parts of these sizes follow each other, [parts]."""
    return torch.tensor([0, *sizes]).cumsum(0)[:-1]


def _padded(columns: Sequence[Tensor]) -> Tensor:
    """The values of each column as one row, [M, at least 1], padded with infinity."""
    # The extra column, which is cut off, makes this work even if there are no columns or no values.
    return pad_sequence([float32([0.0]), *columns], batch_first=True, padding_value=torch.inf)[1:]


class SparseLevels:
    """One-hot levels: one basis row for each code, with a single entry, the scale.

    The mode of a column is its most frequent level. It is added densely (see `sparse_inputs`), so it is not
    among the coefficients. A multi-valued column has no mode, because its levels may be at any position.

    This class and the next four are encoders: each has a `basis` [S, I] and a method `encode`, which returns
    for each row the indices of basis rows [B, K] and their coefficients [B, K].
    """

    def __init__(self, schema: Schema, scale: float) -> None:
        self.scale = scale
        columns = schema.categorical[: schema.num_one_hot]
        has_mode = [column.max_values == 1 and column.num_codes > 0 for column in columns]
        offsets = schema.code_offsets
        modes = [offsets[i] + c.mode if has_mode[i] else -1 for i, c in enumerate(columns)]
        own = [i for i in schema.column_of_position if i < len(columns)]
        self.modes = torch.tensor([modes[i] for i in own], dtype=torch.long)  # [P], -1: none
        self.mode_positions = (self.modes >= 0).nonzero().flatten()  # [C]
        self.mode_inputs = self.modes[self.mode_positions]  # [C]
        self.all_have_modes = len(self.mode_inputs) == len(schema.column_of_position)
        self.basis = scale * sparse.eye_array(offsets[len(columns)])

    def encode(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """A coefficient of 1, or 0 for an unseen level and for the most frequent one."""
        levels = levels[:, : len(self.modes)]
        return levels, (levels != self.modes) & (levels < self.basis.shape[0])

    def mode_values(self, levels: Tensor) -> Tensor:
        """The scale where a column has its most frequent level, else 0, [B, C]; bool if the scale is 1."""
        found = levels if self.all_have_modes else levels.index_select(1, self.mode_positions)
        is_mode = found == self.mode_inputs.to(levels.dtype)  # equal dtypes compare faster
        return is_mode if self.scale == 1 else is_mode * self.scale


class SparseMissing:
    """One input for each numeric column with missing numbers: a coefficient of 1 where the number is NaN."""

    def __init__(self, schema: Schema) -> None:
        columns = [i for i, column in enumerate(schema.numeric) if column.has_missing]
        self.columns = torch.tensor(columns, dtype=torch.long)
        self.basis = sparse.eye_array(len(columns))

    def encode(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        is_missing = numbers.index_select(1, self.columns).isnan()
        return torch.arange(len(self.columns)).expand_as(is_missing), is_missing


class SparseScaling:
    """Numbers with one input each: one basis row for each column, whose coefficient is the input.

    Args:
        scaling: the encoder that computes the inputs: `Standardize`, `MinMax` or `Unscaled`.
    """

    def __init__(self, scaling: Callable[[Schema], nn.Module], schema: Schema) -> None:
        self.encoder = scaling(schema)
        self.basis = sparse.eye_array(len(schema.numeric))

    def encode(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs."""
        return torch.arange(numbers.shape[1]).expand_as(numbers), self.encoder(numbers)


class SparseBins:
    """Piecewise-linear bins: three coefficients for a number with k of its column's n bins below it.

    One basis row sums the k // GROUP full groups of bins, one sums the k % GROUP bins after them, and one is
    the number's own bin, whose coefficient is the share of that bin that lies below the number. A number
    above the last edge has k = n, and the last bin gets a coefficient for the part above the edge.
    """

    def __init__(self, schema: Schema) -> None:
        edges = [float32(column.bins) for column in schema.numeric]
        sizes = [len(edge) - 1 for edge in edges]
        self.first = _starts([size + 1 for size in sizes])
        self.first_group = _starts([size // GROUP + 1 for size in sizes])
        widths = [torch.cat([edge.diff(), edge[-1:] - edge[-2]]) for edge in edges]
        self.begin = torch.cat([float32([]), *edges])  # left edge of the number's own bin
        self.width = torch.cat([float32([]), *widths])
        self.ends = _padded([edge[1:] for edge in edges])
        groups, rests, partials = ([np.empty((0, 0))] for _ in range(3))
        for size in sizes:
            full = np.tri(size + 1, size, -1)  # row k has k ones
            groups.append(full[::GROUP])
            rests.append(full - full[np.arange(size + 1) // GROUP * GROUP])
            partials.append(np.eye(size)[[*range(size), size - 1]])
        self.basis = sparse.vstack([sparse.block_diag(blocks) for blocks in (groups, rests, partials)])

    def encode(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The full groups, the full bins after them, and the number's own bin."""
        num_full = torch.searchsorted(self.ends, numbers.T.contiguous(), right=True).T  # [B, M]
        place, count = self.first + num_full, len(self.begin)
        share = (numbers - self.begin[place]) / self.width[place]
        first = self.basis.shape[0] - 2 * count
        rows = [self.first_group + num_full // GROUP, first + place, first + count + place]
        return torch.cat(rows, dim=1), torch.cat([num_full >= GROUP, num_full % GROUP > 0, share], dim=1)


class SparseValues:
    """Frequent values of numbers: one basis row for each, with a single 1."""

    def __init__(self, schema: Schema) -> None:
        self.first = _starts([len(column.frequent_values) for column in schema.numeric])
        self.values = _padded([float32(column.frequent_values) for column in schema.numeric])
        self.basis = sparse.eye_array(sum(len(column.frequent_values) for column in schema.numeric))

    def encode(self, levels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """A coefficient of 1 where a number is one of the frequent values, else 0."""
        x = numbers.T.contiguous()  # [M, B]
        place = torch.searchsorted(self.values, x).clamp(max=self.values.shape[1] - 1)
        return self.first + place.T, (self.values.gather(1, place) == x).T


def _with_columns(schema: Schema, columns: Sequence[int]) -> Schema:
    """The schema with some of its numeric columns only."""
    return replace(schema, numeric=tuple(schema.numeric[i] for i in columns))


SparseNumbers = SparseScaling | SparseBins | SparseValues


class SparseEncoder:
    """Encode rows as `SparseInputs`. Numbers must be finite, or NaN in a column with missing numbers.

    Args:
        schema: the schema of the data set.
        numbers: the encoders of numbers, each with the numeric columns that it encodes. Their inputs stand
            side by side, after those of the levels.
        scale: the value of an input where the row has its level; elsewhere it is 0.
    """

    def __init__(
        self,
        schema: Schema,
        numbers: Sequence[tuple[Callable[[Schema], SparseNumbers], Sequence[int]]],
        scale: float = 1.0,
    ) -> None:
        self.levels = SparseLevels(schema, scale)
        self.numbers = [encoder(_with_columns(schema, columns)) for encoder, columns in numbers]
        self.number_columns = [torch.tensor(columns, dtype=torch.long) for _, columns in numbers]
        self.missing = SparseMissing(schema)
        bases = [encoder.basis for encoder in (self.levels, *self.numbers, self.missing)]
        self.starts = _starts([basis.shape[0] for basis in bases]).tolist()
        basis = sparse.block_diag(bases, format="csr", dtype=np.float32)
        basis.eliminate_zeros()
        self.basis = SparseMatrix.from_scipy(basis)

    def encode(self, levels: Tensor, numbers: Tensor) -> SparseMatrix:
        """The coefficients of rows, [B, S]."""
        chunks = zip(torch.split(levels, CHUNK), torch.split(numbers, CHUNK), strict=True)
        matrix = sparse.vstack([self._encode(*chunk) for chunk in chunks], format="csr")
        return SparseMatrix.from_scipy(matrix)

    def inputs(self, levels: Tensor, coefficients: SparseMatrix, dense: Tensor | None = None) -> SparseInputs:
        """The inputs of a batch with these levels [B, P], coefficients [B, S] and further inputs [B, D]."""
        mode_values = self.levels.mode_values(levels)
        return SparseInputs(coefficients, self.basis, mode_values, self.levels.mode_inputs, dense)

    def _encode(self, levels: Tensor, numbers: Tensor) -> sparse.csr_array:
        indices, values = ([part] for part in self.levels.encode(levels, numbers))
        present, given = ~numbers.isnan(), numbers.nan_to_num(0.0)
        for encoder, own in zip(self.numbers, self.number_columns, strict=True):
            index, coefficients = encoder.encode(levels, given.index_select(1, own))
            # The coefficients [B, K] are blocks with a column for each of the encoder's own numbers.
            num_blocks = coefficients.shape[1] // max(1, len(own))
            kept = present.index_select(1, own).repeat(1, num_blocks)
            indices.append(index)
            values.append(coefficients * kept)
        index, is_missing = self.missing.encode(levels, numbers)
        parts = zip(self.starts, [*indices, index], strict=True)
        column = torch.cat([part.int() + start for start, part in parts], dim=1)
        value = torch.cat([*values, is_missing], dim=1)
        offsets = np.arange(len(levels) + 1, dtype=np.int32) * value.shape[1]
        arrays = (value.numpy().ravel(), column.numpy().ravel(), offsets)
        matrix = sparse.csr_array(arrays, shape=(len(levels), self.basis.row_offsets.numel() - 1))
        matrix.eliminate_zeros()
        return matrix
