"""Fit the schema of a table to statistics of its partitions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.data.columns import Categorical, Numeric
from mmoe.data.fit_numbers import fit_number_statistics
from mmoe.data.fit_schema import (
    assemble_schema,
    count_column_levels,
    date_formats,
    fit_levels,
    unfitted_columns,
)
from mmoe.data.frame_values import find_numbers, known_labels
from mmoe.data.level_counts import LevelCounts
from mmoe.data.number_statistics import NumberStatistics, is_in_sample
from mmoe.data.schema import Schema
from mmoe.data.splits import SPLITS
from mmoe.data.table_jobs import Job, errors_in
from mmoe.data.table_request import Request
from mmoe.raw.dates import DateFormat
from mmoe.raw.numbers import numbers_of
from mmoe.tasks import Task
from mmoe.tasks.labels import count_levels

MERGED_PARTS = 16  # the counts of this many parts are collected before they are added up

Statistics = LevelCounts | NumberStatistics


@dataclass
class Collected:
    """Statistics of training rows.

    Attributes:
        found: statistics of parts of the rows, for each column of `unfitted_columns` and for the label of
            each task. A numeric column always has one part, because its statistics are merged at once.
        num_rows: rows by split.
    """

    found: dict[str, list[Statistics]]
    num_rows: np.ndarray

    def add(self, other: "Collected") -> None:
        """Add the rows of `other`."""
        self.num_rows = self.num_rows + other.num_rows
        for name, theirs in other.found.items():
            mine = self.found.setdefault(name, [])
            for part in theirs:
                if mine and isinstance(part, NumberStatistics):
                    assert isinstance(mine[0], NumberStatistics)
                    mine[0].merge(part)
                else:
                    mine.append(part)
            if len(mine) >= MERGED_PARTS:
                mine[:] = [_merged(mine, name)]

    def merged(self) -> dict[str, Statistics]:
        """The statistics of all rows."""
        return {name: _merged(parts, name) for name, parts in self.found.items()}


def collect_statistics(job: Job, request: Request, formats: Mapping[str, DateFormat]) -> Collected:
    """The statistics of a partition of the training files.

    Raises:
        UserError: a value has the wrong type, or is not finite.
    """
    columns = list(unfitted_columns(request.columns, formats))
    total = _nothing()
    for frame, first_row in job.frames(request.all_columns("train")):
        with errors_in(job, first_row):
            splits = job.splits_of(frame, first_row)
            rows = np.flatnonzero(splits == SPLITS.index("train"))
            is_sampled = is_in_sample(first_row, len(frame), job.total)[rows]
            found: dict[str, list[Statistics]] = {}
            for column, options in columns:
                if isinstance(column, Categorical):
                    levels = count_column_levels(frame, rows, column, formats.get(column.raw_name))
                    found[column.name] = [levels.without_names() if options.encoding == "hash" else levels]
                else:
                    numbers = find_numbers(frame, column.name, column.date_format)[rows]
                    found[column.name] = [NumberStatistics.of(numbers, is_sampled, first_row)]
            for task in request.tasks:
                labels = known_labels(frame, task)
                found[_label_key(task)] = [_of_labels(task, labels, rows, is_sampled, first_row)]
        total.add(Collected(found, np.bincount(splits, minlength=len(SPLITS))))
    return Collected({name: [one] for name, one in total.merged().items()}, total.num_rows)


def first_formats(job: Job, request: Request) -> dict[str, DateFormat]:
    """The formats of the columns of dates, by column, from the first rows of a partition."""
    names = [name for name, one in request.columns.items() if one.kind == "datetime"]
    if not names:
        return {}
    frames = job.frames(names)
    frame, first_row = next(frames)
    with errors_in(job, first_row):
        return date_formats(frame, {name: request.columns[name] for name in names}, None)


def _nothing() -> Collected:
    return Collected({}, np.zeros(len(SPLITS), np.int64))


def _label_key(task: Task) -> str:
    """The key of a task's statistics, which no column has."""
    return f"label of task {task.name}"


def _of_labels(
    task: Task, labels: pd.Series, rows: np.ndarray, is_sampled: np.ndarray, first_row: int
) -> Statistics:
    """The statistics of the labels at the positions `rows`. If labels are numbers, all are checked."""
    if task.holds_numbers:
        task.encode(labels)  # names the row of a wrong one
        return NumberStatistics.of(numbers_of(labels).astype(np.float64)[rows], is_sampled, first_row)
    counts = count_levels(labels.iloc[rows])
    return LevelCounts(pa.array([*counts], pa.string()), np.array([*counts.values()], np.int64))


def _merged(parts: Sequence[Statistics], name: str) -> Statistics:
    if isinstance(parts[0], NumberStatistics):
        return parts[0]
    return LevelCounts.merge([part for part in parts if isinstance(part, LevelCounts)], name)


def fit_statistics(
    parts: Iterable[Collected], request: Request, formats: Mapping[str, DateFormat]
) -> tuple[Schema, dict[str, int]]:
    """The schema that fits the training rows, and the number of rows of the training files in each split."""
    total = _nothing()
    for part in parts:
        total.add(part)
    merged = total.merged()
    fitted: list[Categorical | Numeric] = []
    for column, options in unfitted_columns(request.columns, formats):
        found = merged[column.name]
        if isinstance(column, Categorical):
            assert isinstance(found, LevelCounts)
            fitted.append(fit_levels(column, found, options))
        else:
            assert isinstance(found, NumberStatistics)
            fitted.append(fit_number_statistics(column, found, request.num_bins))
    tasks = [_fit_task(task, merged[_label_key(task)]) for task in request.tasks]
    return assemble_schema(fitted, tasks), dict(zip(SPLITS, total.num_rows.tolist(), strict=True))


def _fit_task(task: Task, found: Statistics) -> Task:
    if isinstance(found, LevelCounts):
        levels = found.levels.to_pylist()
        return task.fit_counts(dict(zip(levels, found.counts.tolist(), strict=True)))
    return task.fit(pd.Series(found.values()))
