"""Fit the schema of a data set to its training rows."""

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

from mmoe.checks.arguments import check_integers
from mmoe.data.column_options import ColumnOptions
from mmoe.data.columns import DATE_PARTS, TARGET_ENCODINGS, Categorical, Numeric, column_rank
from mmoe.data.fit_numbers import EMPTY_BIN, fit_values
from mmoe.data.frame_values import find_levels, find_numbers, known_labels
from mmoe.data.level_counts import LevelCounts, value_counts
from mmoe.data.schema import Schema
from mmoe.errors import RowError, UserError
from mmoe.raw.dates import DateFormat, guess_format
from mmoe.raw.frame_column import column_of, is_categorical
from mmoe.tasks import Task

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
        kinds = {True: "categorical", False: "numeric"}
        columns = {name: ColumnOptions(kinds[is_categorical(column_of(frame, name))]) for name in columns}
    jobs: list[Callable[[], Categorical | Numeric]] = []
    formats = date_formats(frame, columns, rows)
    for column, options in unfitted_columns(columns, formats):
        if isinstance(column, Categorical):
            date_format = formats.get(column.raw_name)
            jobs.append(partial(_fit_categorical, frame, rows, column, options, date_format))
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


def unfitted_columns(
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
        tuple(sorted(categorical, key=column_rank)),
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
    date_format: DateFormat | None,
) -> Categorical:
    return fit_levels(column, count_column_levels(frame, rows, column, date_format), options)


def count_column_levels(
    frame: pd.DataFrame, rows: np.ndarray | None, column: Categorical, date_format: DateFormat | None
) -> LevelCounts:
    """The levels of a categorical column in the rows at these positions, or in all rows.

    `date_format` is the format of dates, if the levels are a part of them.
    """
    values = column_of(frame, column.raw_name)
    if isinstance(values.dtype, pd.ArrowDtype) and not (column.is_multi or column.part):
        array = pa.array(values if rows is None or len(rows) == len(values) else values.iloc[rows])
        if (counted := value_counts(array)) is not None:
            return counted
    found = find_levels(frame, column, date_format)
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
    if options.encoding in TARGET_ENCODINGS:
        column = replace(column, encoding=options.encoding)
    return replace(column, size=_vector_size(column, options))


def _vector_size(column: Categorical, options: ColumnOptions) -> int:
    """The size of the column's learned vectors; 0 for one-hot."""
    count = column.num_codes
    if options.encoding == "target":
        return 0
    if options.encoding in ("one_hot", "one_hot_and_target"):
        if count > MAX_ONE_HOT:
            alternative = "target" if options.encoding == "one_hot_and_target" else "embedding"
            what = f"{options.encoding} allows {MAX_ONE_HOT} codes, the column has {count}"
            rule = f"{what}; leave encoding out, or give {alternative}"
            raise UserError(f"data.columns.{column.name}.encoding: {rule}")
        return 0
    if options.encoding == "auto" and not options.size and count <= MAX_AUTO_ONE_HOT:
        return 0
    # A common rule: four times the fourth root of the number of levels.
    return options.size or min(64, 4 * math.ceil(count**0.25))


def _fit_numbers(frame: pd.DataFrame, rows: np.ndarray | None, column: Numeric, num_bins: int) -> Numeric:
    numbers = find_numbers(frame, column.name, column.date_format)
    return fit_values(column, numbers if rows is None else numbers[rows], num_bins)
