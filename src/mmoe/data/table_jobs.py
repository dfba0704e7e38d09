"""Plan the encoding of a table that does not fit into memory: its partitions, and the split of each row.

N rows.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa

from mmoe.data.column_types import common_schema
from mmoe.data.csv_columns import TextRules
from mmoe.data.engine import Engine
from mmoe.data.hashes import row_hashes
from mmoe.data.partitions import Partition, cut_partitions, read_partition, scan_file
from mmoe.data.split_rules import SplitRule
from mmoe.data.splits import CONFIG_KEYS, SPLITS
from mmoe.data.table_files import locate
from mmoe.data.table_request import Request, text_rules
from mmoe.data.table_splits import (
    MAX_SHUFFLED_ROWS,
    RowFilter,
    check_chosen,
    choose_all,
    find_date_format,
    ordered_values,
    row_filter,
)  # fmt: skip
from mmoe.errors import RowError, UserError
from mmoe.raw.dates import DateFormat


@dataclass(frozen=True)
class Job:
    """A partition, and what a worker must know of the whole table to process it.

    Attributes:
        number: the number of the partition among those of all sources, from 0.
        types: the types of the columns in the whole source.
        total: the number of rows in the whole source.
        splits: for each row the number of its split in `SPLITS` [N]; None: `filters` decide.
        filters: for each split that a rule takes from this source, which rows it takes. The first wins.
        rest: the split of all other rows.
    """

    number: int
    partition: Partition
    text_rules: TextRules
    types: pa.Schema
    total: int
    splits: np.ndarray | None
    filters: Mapping[str, RowFilter]
    rest: str

    def frames(self, columns: Sequence[str]) -> Generator[tuple[pd.DataFrame, int]]:
        """The rows in frames of bounded size, and the number of each frame's first row in the source."""
        first_row = self.partition.first_row
        needed = [name for one in self.filters.values() for name in one.rule.needed_columns]
        names = list(dict.fromkeys([*columns, *needed]))
        with closing(read_partition(self.partition, self.text_rules, self.types, names)) as tables:
            for table in tables:
                yield table.to_pandas(types_mapper=pd.ArrowDtype), first_row
                first_row += len(table)

    def splits_of(self, frame: pd.DataFrame, first_row: int) -> np.ndarray:
        """For each row of a frame the number of its split in `SPLITS` [N]."""
        if self.splits is not None:
            start = first_row - self.partition.first_row
            return self.splits[start : start + len(frame)]
        found = np.full(len(frame), SPLITS.index(self.rest), np.uint8)
        is_free = np.ones(len(frame), bool)
        for split, accepts in self.filters.items():
            chosen = accepts(frame, first_row) & is_free
            found[chosen] = SPLITS.index(split)
            is_free &= ~chosen
        return found


@contextmanager
def errors_in(job: Job, first_row: int) -> Iterator[None]:
    """Begin the message of a UserError with the file, and also with the line if it is the error of a row."""
    part = job.partition
    try:
        yield
    except RowError as error:
        row = part.file_row + first_row - part.first_row + error.row
        raise locate([part.file], job.text_rules.csv, RowError(error.column, row, error.rule)) from None
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("data.") else f"{part.file}: {message}") from None


def plan(request: Request, engine: Engine) -> list[Job]:
    """The jobs of all sources, in the order of their rows.

    Raises:
        UserError: a file or a value that a split needs breaks a rule.
    """
    jobs: list[Job] = []
    text = text_rules(request.csv, request.columns, request.tasks)
    for source, files in request.files.items():
        columns = request.all_columns(source)
        look = partial(scan_file, rules=text, columns=columns)
        scans = {found.path: found for found in engine.map(look, files)}
        ordered = [scans[file] for file in files]
        types = common_schema(ordered, columns)
        partitions = cut_partitions(source, ordered)
        total = sum(partition.num_rows for partition in partitions)
        if not total:
            raise UserError(f"data.{source}: must have at least one row; has none")
        bare = [
            Job(len(jobs) + i, partition, text, types, total, None, {}, request.rest(source))
            for i, partition in enumerate(partitions)
        ]
        rules = request.rules_of(source)
        try:
            jobs += _with_splits(bare, rules, request, engine) if rules else bare
        except RowError as error:
            raise locate(files, text.csv, error) from None
    return jobs


def _with_splits(
    jobs: Sequence[Job], rules: Mapping[str, SplitRule], request: Request, engine: Engine
) -> Iterator[Job]:
    """The jobs of one source, with the rows that rules take from it."""
    total, seed, days_first = jobs[0].total, request.split_seed, request.days_first
    columns = list(dict.fromkeys(name for rule in rules.values() for name in rule.needed_columns))
    if total <= MAX_SHUFFLED_ROWS:
        frame = _all_rows(jobs, columns, engine) if columns else pd.DataFrame(index=range(total))
        splits = np.empty(total, np.uint8)
        for split, chosen in choose_all(rules, jobs[0].rest, frame, seed, days_first).items():
            splits[chosen] = SPLITS.index(split)
        for job in jobs:
            start = job.partition.first_row
            yield replace(job, splits=splits[start : start + job.partition.num_rows])
        return
    filters: dict[str, RowFilter] = {}
    for split, rule in rules.items():
        sample, date_format = np.empty(0), None
        if rule.last:
            frame, _ = next(jobs[0].frames(rule.needed_columns))
            date_format = find_date_format(rule, frame, days_first.get(str(rule.by)))
            look = partial(_sample_values, rule=rule, date_format=date_format, name=CONFIG_KEYS[split])
            sample = np.concatenate(
                list(engine.map(look, [replace(job, filters=dict(filters)) for job in jobs]))
            )
            if not len(sample):  # earlier rules take all rows
                check_chosen(CONFIG_KEYS[split], 0, 0)
        filters[split] = row_filter(rule, sample, date_format, seed, CONFIG_KEYS[split])
    for job in jobs:
        yield replace(job, filters=filters)


def _all_rows(jobs: Sequence[Job], columns: Sequence[str], engine: Engine) -> pd.DataFrame:
    found = dict(engine.map(partial(_rows, columns=columns), jobs))
    return pd.concat([found[job.number] for job in jobs], ignore_index=True)


def _rows(job: Job, columns: Sequence[str]) -> tuple[int, pd.DataFrame]:
    return job.number, pd.concat([frame for frame, _ in job.frames(columns)], ignore_index=True)


def _sample_values(job: Job, rule: SplitRule, date_format: DateFormat | None, name: str) -> np.ndarray:
    """The values of the rule's column `by`, for a random sample of the rows that no earlier rule takes."""
    parts = []
    for frame, first_row in job.frames(rule.needed_columns):
        with errors_in(job, first_row):
            is_free = job.splits_of(frame, first_row) == SPLITS.index(job.rest)
            is_sampled = row_hashes(first_row, len(frame), "last") < MAX_SHUFFLED_ROWS / job.total
            parts.append(ordered_values(rule, frame, date_format, name)[is_free & is_sampled])
    return np.concatenate(parts)
