"""Guess the kind of a task from the values of its label.

N rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mmoe.data.column_values import NOT_TEXT, ColumnValues
from mmoe.data.number_spellings import (
    find_marks,
    odd_spellings,
    remark_on_marks,
    remark_on_spellings,
    remark_on_unit,
)
from mmoe.errors import UserError
from mmoe.tasks.task import WHERE_LEVELS

YES = ("yes", "y", "true", "t", "1", "high", "positive", "good", "success")
MAX_CLASSES = 9  # whole numbers with more distinct values are a regression, unless they have gaps
MAX_CLASSES_WITH_GAPS = 20
MAX_COUNTS = 100  # counts with more distinct values are a regression


@dataclass
class TaskGuess:
    """A task: the column of its label, its kind and options, and what the user should know."""

    name: str
    values: ColumnValues
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """The entry below `tasks`."""
        kind = {} if self.kind == "binary" else {"kind": self.kind}
        return {"column": self.values.name} | kind | self.options

    @property
    def positive(self) -> np.ndarray:
        """Whether each row has the positive level [N]; of a binary task."""
        texts = list(map(str, self.options["positive"]))
        is_positive = np.array([text in texts for text in self.values.texts])
        positive: np.ndarray = np.append(is_positive, False)[self.values.codes]
        return positive


def guess_task(name: str, values: ColumnValues, is_csv: bool = False) -> TaskGuess:
    """Guess a task. For a label in a CSV file, remarks may advise other CSV options.

    Raises:
        UserError: the column cannot be a label.
    """
    where = f"tasks: column {values.name!r}"
    if pa.types.is_nested(values.type):
        raise UserError(f"{where}: must have one value in a row, holds {values.type}")
    if pa.types.is_binary(values.type):
        raise UserError(f"{where}: must hold numbers or text, holds {NOT_TEXT}")
    if pa.types.is_duration(values.type):
        raise UserError(f"{where}: must hold numbers or text, holds {values.type}")
    if len(values.distinct) < 2:
        what = f"{values.texts[0]!r} in every row that has a value" if values.num_known else "no value"
        raise UserError(f"{where}: must have at least two values to learn; has {what}")
    task = _guess_kind(name, values, is_csv)
    if values.num_missing:
        task.remarks.append(f"unknown in {values.num_missing:,} rows")
    return task


def guess_tasks(
    names: Sequence[str], columns: dict[str, ColumnValues], is_csv: bool = False
) -> list[TaskGuess]:
    """Guess the tasks of these columns, and remark on tasks whose labels depend on another task."""
    taken: set[str] = set()
    tasks = []
    for column in names:
        name = re.sub(r"\W+", "_", column).strip("_") or "task"
        while name in taken:
            name += "_"
        taken.add(name)
        task = guess_task(name, columns[column], is_csv)
        if name != column:
            reason = ", because configurations need names of letters, digits and underscores"
            task.remarks.append(f"named {name}" + (reason if re.search(r"\W", column) else ""))
        tasks.append(task)
    remark_on_funnels(tasks)
    return tasks


def remark_on_funnels(tasks: Sequence[TaskGuess]) -> None:
    """Add a remark to each task whose labels depend on another task."""
    for task in tasks:
        _remark_on_funnel(task, tasks)


def _guess_kind(name: str, values: ColumnValues, is_csv: bool) -> TaskGuess:
    count = len(values.distinct)
    if count == 2:
        level = _positive_level(values)
        shown = int(level) if level.isdecimal() and str(int(level)) == level else level
        share = values.counts[values.texts.index(level)] / values.num_known
        return TaskGuess(
            name,
            values,
            "binary",
            {"positive": [shown]},
            [f"{level} is positive: {share:.2%} of the known labels"],
        )
    if not values.is_number:
        task = TaskGuess(name, values, "multiclass", {}, [f"{count:,} classes"])
        if marks := find_marks(values.texts):
            task.remarks.append(remark_on_marks(marks, is_csv))
        elif others := odd_spellings(values):
            task.remarks.append(remark_on_spellings(others, is_csv))
        elif unit := remark_on_unit(values.texts):
            task.remarks.append(unit)
        if count > values.num_known / 10:
            task.remarks.append("fewer than ten rows for each class on average")
        return task
    numbers, counts = values.distinct_numbers, values.counts
    low, high = numbers.min(), numbers.max()
    if values.is_whole:
        mean = float(np.average(numbers, weights=counts))
        if low == 0 and count <= MAX_COUNTS and numbers[counts.argmax()] == 0 and mean < high / 2:
            return TaskGuess(name, values, "count", {}, [f"0 to {high:g}, most often 0"])
        limit = MAX_CLASSES_WITH_GAPS if high - low >= 2 * count else MAX_CLASSES
        if count <= limit:
            return TaskGuess(name, values, "multiclass", {}, [f"{count} classes, {low:g} to {high:g}"])
    task = TaskGuess(name, values, "regression", {}, [f"{low:g} to {high:g}"])
    if values.is_whole and low >= 0 and count <= MAX_COUNTS:
        task.remarks.append("kind: count if it counts events")
    return task


def _positive_level(values: ColumnValues) -> str:
    """The level that means yes; if neither or both mean it, the rarer level."""
    meant = [text for text in values.texts if text.strip().lower() in YES]
    return meant[0] if len(meant) == 1 else values.texts[int(values.counts.argmin())]


def _remark_on_funnel(task: TaskGuess, tasks: Sequence[TaskGuess]) -> None:
    """Add a remark if this label is negative, 0 or missing in all negative rows of another task.

    Of several such tasks, the one with the fewest positive rows is named.
    """
    if task.kind == "binary":
        active = task.positive
    elif task.values.is_number:
        active = np.nan_to_num(task.values.numbers) != 0
    else:
        return
    around: list[tuple[int, TaskGuess]] = []
    for other in tasks:
        # A numeric label may be other than 0 in all positive rows of the other task. A binary label must have
        # fewer positive rows than the other task. If they were the same rows, each would depend on the other.
        is_wider = other.kind == "binary" and (task.kind != "binary" or other.positive.sum() > active.sum())
        if other is not task and is_wider and not (active & ~other.positive).any():
            around.append((int(other.positive.sum()), other))
    if around and active.mean() < 0.5:
        other = min(around, key=lambda pair: pair[0])[1]
        column, is_missing = other.values.name, task.values.codes[~other.positive] < 0
        levels = list(map(str, other.options["positive"]))
        is_default = {level.lower() for level in levels} <= set(WHERE_LEVELS)
        where = column if is_default else f"{{{column}: [{', '.join(levels)}]}}"
        what = "negative" if task.kind == "binary" else "0"
        what = "missing" if is_missing.all() else f"{what} or missing" if is_missing.any() else what
        task.remarks.append(
            f"{what} in all negative rows of {column}; `where: {where}` would leave these rows out"
        )
