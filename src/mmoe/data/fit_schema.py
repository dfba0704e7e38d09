"""Fit the schema of a data set to its training rows.

N rows.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mmoe.data.column_options import ColumnOptions
from mmoe.data.column_statistics import LevelCounts, NumberStatistics, value_counts
from mmoe.data.dates import DateFormat, guess_format
from mmoe.data.encode import find_levels, find_numbers
from mmoe.data.encode_labels import known_labels
from mmoe.data.raw_column import check_finite_column, column_of, is_categorical
from mmoe.data.schema import DATE_PARTS, Categorical, Numeric, Schema
from mmoe.data.schema_checks import MAX_MAGNITUDE
from mmoe.errors import RowError, UserError, check_integers
from mmoe.tasks import Task

FREQUENT_ROWS = 10  # a value is frequent if it occurs in at least this many training rows
MAX_QUANTILE_VALUES = 2**24  # torch.quantile takes no more values than this
MAX_EXACT_FLOAT32 = 2**24  # float32 cannot hold every larger integer
EMPTY_BIN = (0.0, 1.0)  # of a column without values
MIN_BIN_WIDTH = 1e-30  # 1 / width must not overflow
MAX_AUTO_ONE_HOT = 256  # a column with more levels gets learned vectors
MAX_ONE_HOT = 4096  # the most codes that a configuration may encode one-hot


def fit_schema(
    frame: pd.DataFrame,
    columns: Sequence[str] | Mapping[str, ColumnOptions],
    tasks: Sequence[Task],
    num_bins: int,
    rows: np.ndarray | None = None,
) -> Schema:
    """Compute vocabularies, scales and quantile bins of the columns of training rows.

    The training rows are those at the positions `rows` of the frame; None: all rows.

    With a list of columns, those of numbers are numeric, and the others are categorical. Numeric columns get
    at most `num_bins` bins; with fewer distinct values, each value is an edge. Each task is fitted to its
    known labels. Columns are fitted in parallel.

    Raises:
        UserError: a column is missing, occurs twice or has the wrong type, a number is infinite, or a task
            cannot be fitted to its labels.
    """
    check_integers(2, num_bins=num_bins)
    for name, count in Counter(list(columns)).items():
        if count > 1:
            raise UserError(f"columns: must have different names; {count} have the name {name!r}")
    if not isinstance(columns, Mapping):
        kinds = ("numeric", "categorical")
        columns = {name: ColumnOptions(kinds[is_categorical(column_of(frame, name))]) for name in columns}
    jobs: list[Callable[[], Categorical | Numeric]] = []
    formats = date_formats(frame, columns, rows)
    for column, options in unfitted(columns, formats):
        if isinstance(column, Categorical):
            dates = formats.get(column.raw_name)
            jobs.append(partial(_fit_categorical, frame, rows, column, options, dates))
        else:
            jobs.append(partial(_fit_numbers, frame, rows, column, num_bins))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        fitted = [job.result() for job in [threads.submit(job) for job in jobs]]
    return assemble_schema(fitted, [_fit_task(task, frame, rows) for task in tasks])


def date_formats(
    frame: pd.DataFrame, columns: Mapping[str, ColumnOptions], rows: np.ndarray | None
) -> dict[str, DateFormat]:
    """The formats of the columns of dates, by column."""
    values = {name: column_of(frame, name) for name, one in columns.items() if one.kind == "datetime"}
    return {
        name: guess_format(column if rows is None else column.iloc[rows], columns[name].day_first)
        for name, column in values.items()
    }


def unfitted(
    columns: Mapping[str, ColumnOptions], formats: Mapping[str, DateFormat]
) -> Iterator[tuple[Categorical | Numeric, ColumnOptions]]:
    """The columns of the schema before they are fitted, each with its options."""
    for name, options in columns.items():
        if options.kind == "multi":
            yield Categorical(name, (), is_multi=True, separator=options.separator), options
        elif options.kind == "categorical":
            yield Categorical(name, ()), options
        else:
            encoding = "" if options.encoding == "auto" else options.encoding
            column = Numeric(name, 0.0, 1.0, EMPTY_BIN, encoding=encoding)
            if name in formats:
                column = replace(column, is_datetime=True, **formats[name]._asdict())
            yield column, options
            for part in DATE_PARTS if name in formats else ():
                part_column = Categorical(f"{name}.{part}", (), source=name, part=part)
                yield part_column, ColumnOptions("datetime")


def assemble_schema(fitted: Iterable[Categorical | Numeric], tasks: Iterable[Task]) -> Schema:
    """The schema of these columns and tasks."""
    columns = list(fitted)
    # A part that never varies, such as the hour of dates without a time, tells nothing.
    categorical = [c for c in columns if isinstance(c, Categorical) and not (c.part and c.num_codes < 2)]
    return Schema(
        tuple(sorted(categorical, key=lambda column: column.size > 0)),
        tuple(column for column in columns if isinstance(column, Numeric)),
        tuple(tasks),
    )


def _fit_task(task: Task, frame: pd.DataFrame, rows: np.ndarray | None) -> Task:
    labels = known_labels(frame, task)
    try:
        return task.fit(labels if rows is None else labels.iloc[rows])
    except RowError as error:
        if rows is None:
            raise
        raise RowError(error.column, int(rows[error.row]), error.rule) from None


def _fit_categorical(
    frame: pd.DataFrame,
    rows: np.ndarray | None,
    column: Categorical,
    options: ColumnOptions,
    dates: DateFormat | None,
) -> Categorical:
    return fit_levels(column, count_levels(frame, rows, column, dates), options)


def count_levels(
    frame: pd.DataFrame, rows: np.ndarray | None, column: Categorical, dates: DateFormat | None
) -> LevelCounts:
    """The levels of a categorical column in the rows at these positions, or in all rows.

    `dates` is the format of dates, if the levels are a part of them.
    """
    values = column_of(frame, column.raw_name)
    if isinstance(values.dtype, pd.ArrowDtype) and not (column.is_multi or column.part):
        array = pa.array(values if rows is None or len(rows) == len(values) else values.iloc[rows])
        if (counted := value_counts(array)) is not None:
            return counted
    found = find_levels(frame, column, dates)
    codes, names, row_offsets = found
    longest = 1
    if row_offsets is not None:
        pairs = np.stack([found.rows, codes])
        if rows is not None:
            pairs = pairs[:, np.isin(found.rows, rows)]
        row, codes = np.unique(pairs, axis=1)  # a level counts once in a row
        longest = int(np.bincount(row, minlength=1).max())
    elif rows is not None:
        codes = codes[rows]
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    occurring = np.flatnonzero(counts)
    levels = pa.array(np.array(names, dtype=object)[occurring], pa.string())
    return LevelCounts(levels, counts[occurring], bool((codes < 0).any()), longest)


def fit_levels(column: Categorical, found: LevelCounts, options: ColumnOptions) -> Categorical:
    """The vocabulary and the encoding of a categorical column with these levels."""
    column = replace(column, has_missing=found.has_missing)
    if column.is_multi:
        column = replace(column, max_values=max(1, min(options.max_values, found.longest)))
    if options.encoding == "hash":
        column = replace(column, buckets=options.buckets)
    else:
        is_kept = found.counts >= options.min_count
        kept = found.levels.filter(pa.array(is_kept))
        order = pc.sort_indices(kept)
        mode = int(found.counts[is_kept][order].argmax()) if len(kept) else 0
        levels = tuple(kept.take(order).to_pylist())
        column = replace(column, levels=levels, mode=mode, has_rare=not is_kept.all())
    return replace(column, size=_vector_size(column, options))


def _vector_size(column: Categorical, options: ColumnOptions) -> int:
    """The size of the column's learned vectors; 0 for one-hot."""
    count = column.num_codes
    if options.encoding == "one_hot" and count > MAX_ONE_HOT:
        rule = f"one_hot allows {MAX_ONE_HOT} codes, the column has {count}; remove it, or give embedding"
        raise UserError(f"data.columns.{column.name}.encoding: {rule}")
    is_small = options.encoding == "auto" and not options.size and count <= MAX_AUTO_ONE_HOT
    if options.encoding == "one_hot" or is_small:
        return 0
    # A common rule: four times the fourth root of the number of levels.
    return options.size or min(64, 4 * math.ceil(count**0.25))


def _fit_numbers(frame: pd.DataFrame, rows: np.ndarray | None, column: Numeric, num_bins: int) -> Numeric:
    numbers = find_numbers(frame, column.name, column.date_format)
    return _fit_values(column, numbers if rows is None else numbers[rows], num_bins)


def fit_numeric(name: str, values: np.ndarray, num_bins: int) -> Numeric:
    """Scale, bins and frequent values of a column with the training values [N]; NaN is missing.

    Raises:
        UserError: there are no values, or one is infinite.
    """
    return _fit_values(Numeric(name, 0.0, 1.0, EMPTY_BIN), values, num_bins)


def _fit_values(column: Numeric, values: np.ndarray, num_bins: int) -> Numeric:
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

    The result is that of `fit_numeric` if all rows are in the sample.
    """
    column, values = replace(column, has_missing=found.has_missing), found.values()
    if not len(found.distinct):
        return column
    known = values[~np.isnan(values)]
    if found.is_exact and len(known) == found.counts.sum():
        return _fit_values(column, values, num_bins)
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
    """The values from the origin on, limited to what the network can compute with."""
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
    # capital_gains, which is 0 in 96 of 100 rows, would have a single bin.
    edges = torch.from_numpy(distinct)
    if len(edges) > num_bins + 1:
        if len(edges) > MAX_QUANTILE_VALUES:
            chosen = torch.linspace(0, len(edges) - 1, MAX_QUANTILE_VALUES, dtype=torch.float64)
            edges = edges[chosen.round().long()]
        (edges,) = compute_bins(edges[:, None], n_bins=num_bins)
    bins = _drop_narrow_bins(edges.tolist())
    if len(bins) == 1:
        std, bins = 1.0, _bin_of_constant(mean)
    return replace(column, mean=mean, std=std, bins=bins, values=tuple(frequent.tolist()))


def _origin(values: np.ndarray) -> float:
    """The smallest value, if the values are so large that float32 rounds different ones to one; else 0."""
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
