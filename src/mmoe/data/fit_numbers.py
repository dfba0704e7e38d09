"""Fit the scale, the quantile bins and the frequent values of a numeric column.

N rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mmoe.checks.fields import MAX_MAGNITUDE
from mmoe.data.columns import Numeric
from mmoe.data.number_statistics import NumberStatistics
from mmoe.errors import UserError
from mmoe.raw.numbers import check_finite_column

FREQUENT_ROWS = 10  # a value is frequent if it occurs in at least this many training rows
MAX_QUANTILE_VALUES = 2**24  # torch.quantile takes no more values than this
MAX_EXACT_FLOAT32 = 2**24  # float32 cannot hold every larger integer
EMPTY_BIN = (0.0, 1.0)  # of a column without values
MIN_BIN_WIDTH = 1e-30  # 1 / width must not overflow


def fit_numeric(name: str, values: np.ndarray, num_bins: int) -> Numeric:
    """Scale, bins and frequent values of a column with the training values [N]; NaN is missing.

    Raises:
        UserError: there are no rows, or a value is not finite in float32.
    """
    return fit_values(Numeric(name, 0.0, 1.0, EMPTY_BIN), values, num_bins)


def fit_values(column: Numeric, values: np.ndarray, num_bins: int) -> Numeric:
    """As `fit_numeric`, for a column that is not fitted yet."""
    if not len(values):
        raise UserError(f"column {column.name}: must have at least one row")
    check_finite_column(column.name, values)
    is_missing = np.isnan(values)
    column = replace(column, has_missing=bool(is_missing.any()))
    if column.has_missing:
        values = values[~is_missing]
        if not len(values):
            return column
    column = replace(column, origin=_origin(values))
    values = _shifted(values, column.origin)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    distinct, counts = np.unique(values.astype(np.float32), return_counts=True)
    return _with_bins(column, mean, std, distinct, distinct[counts >= FREQUENT_ROWS], num_bins)


def fit_number_statistics(column: Numeric, found: NumberStatistics, num_bins: int) -> Numeric:
    """The column with the scale, bins and frequent values of training rows.

    The result is that of `fit_numeric` if all rows are in the sample and `found.is_exact`.
    """
    column, values = replace(column, has_missing=found.has_missing), found.values()
    if not len(found.distinct):
        return column
    known = values[~np.isnan(values)]
    if found.is_exact and len(known) == found.counts.sum():
        return fit_values(column, values, num_bins)
    distinct = np.unique(np.concatenate([[found.low, found.high], found.distinct]))
    column = replace(column, origin=_origin(distinct))
    if found.is_exact:
        values, counts = _shifted(found.distinct, column.origin), found.counts
    else:
        values, counts = np.unique(_shifted(known, column.origin), return_counts=True)
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average(np.square(values - mean), weights=counts)))
    frequent = np.unique(values[counts >= FREQUENT_ROWS].astype(np.float32))
    distinct = np.unique(_shifted(distinct, column.origin).astype(np.float32))
    return _with_bins(column, mean, std, distinct, frequent, num_bins)


def _shifted(values: np.ndarray, origin: float) -> np.ndarray:
    """The values minus the origin, limited to what the network can compute with."""
    if origin:
        values = values.astype(np.float64) - origin
    if np.abs(values).max(initial=0) > MAX_MAGNITUDE:
        values = np.clip(values, -MAX_MAGNITUDE, MAX_MAGNITUDE)
    return values


def _with_bins(
    column: Numeric, mean: float, std: float, distinct: np.ndarray, frequent: np.ndarray, num_bins: int
) -> Numeric:
    """The column with its scale and its bins. `distinct` and `frequent` hold increasing float32 values."""
    from rtdl_num_embeddings import compute_bins  # imports scikit-learn, if it is installed

    # The edges are quantiles of the distinct values. With quantiles of all values, a column such as
    # capital_gains, which is 0 in 96 of 100 rows, would have hardly any bins.
    edges = torch.from_numpy(distinct)
    if len(edges) > num_bins + 1:
        if len(edges) > MAX_QUANTILE_VALUES:
            chosen = torch.linspace(0, len(edges) - 1, MAX_QUANTILE_VALUES, dtype=torch.float64)
            edges = edges[chosen.round().long()]
        (edges,) = compute_bins(edges[:, None], n_bins=num_bins)
    bins = _drop_narrow_bins(edges.tolist())
    if len(bins) == 1:
        std, bins = 1.0, _bin_of_constant(mean)
    return replace(column, mean=mean, std=std, bins=bins, frequent_values=tuple(frequent.tolist()))


def _origin(values: np.ndarray) -> float:
    """The smallest value, if the values are so large and close that float32 would make some equal; else 0."""
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    if largest <= MAX_EXACT_FLOAT32 or high - low >= largest / 2:
        return 0.0
    is_rounded = len(np.unique(values.astype(np.float32))) < len(np.unique(values))
    return low if is_rounded else 0.0


def _drop_narrow_bins(edges: Sequence[float]) -> tuple[float, ...]:
    """Drop each edge that is closer than `MIN_BIN_WIDTH` to the last edge that is kept."""
    kept = [edges[0]]
    for edge in edges[1:]:
        if edge - kept[-1] >= MIN_BIN_WIDTH:
            kept.append(edge)
    return tuple(kept)


def _bin_of_constant(value: float) -> tuple[float, float]:
    """A bin from `value` to `value + 1`, or to the next float32 number if these two are equal in float32."""
    if np.float32(value) < np.float32(value + 1):
        return value, value + 1
    rounded = np.float32(value)
    return float(rounded), float(np.nextafter(rounded, np.float32(np.inf)))
