"""Guess which shares of a table are enough for validation and test rows."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

from mmoe.data.split_rules import SplitRule
from mmoe.data.table_splits import choose_all
from mmoe.data.task_guess import TaskGuess
from mmoe.errors import UserError

VALIDATION, TEST = (0.1, 0.2, 0.3, 0.4), (0.2, 0.3, 0.4)


class Fractions(NamedTuple):
    """The shares of validation and test rows.

    Attributes:
        reason: why they are larger than usual; empty if they are not.
        one_class: the binary tasks that have only one class in some split with these shares.
    """

    validation: float
    test: float
    reason: str = ""
    one_class: tuple[str, ...] = ()


USUAL_FRACTIONS = Fractions(VALIDATION[0], TEST[0])


def guess_fractions(
    tasks: Sequence[TaskGuess], main_task: str, num_rows: int, has_test_file: bool
) -> Fractions:
    """The smallest shares for which the binary tasks have both classes in the rows of each split.

    If no shares do this for all tasks, those that do it for the main task are preferred, then those that do
    it for the most tasks.
    """
    names = [task.name for task in tasks if task.kind == "binary"]
    best, found = USUAL_FRACTIONS, tasks_with_both_classes(tasks, USUAL_FRACTIONS, num_rows, has_test_file)
    before = found
    if found is not None and len(found) == len(names):
        return USUAL_FRACTIONS
    for test, validation in product(TEST[:1] if has_test_file else TEST, VALIDATION):
        candidate = Fractions(validation, test)
        now = tasks_with_both_classes(tasks, candidate, num_rows, has_test_file)
        if _rank(now, main_task) > _rank(found, main_task):
            best, found = candidate, now
    gained = [name for name in names if name in (found or ()) and name not in (before or ())]
    without = f"have only one class of {', '.join(gained)}" if gained else "be empty"
    return best._replace(
        reason="" if best == USUAL_FRACTIONS else f"with less, a split would {without}",
        one_class=tuple(name for name in names if name not in (found or ())),
    )


def tasks_with_both_classes(
    tasks: Sequence[TaskGuess], fractions: Fractions, num_rows: int, has_test_file: bool
) -> set[str] | None:
    """The binary tasks with known labels of both classes in each split; None if a split is empty.

    The rows are those that training chooses with `split_seed: 0`.
    """
    rules = {} if has_test_file else {"test": SplitRule(fraction=fractions.test)}
    rules["val"] = SplitRule(fraction=fractions.validation)
    try:
        splits = choose_all(rules, "train", pd.DataFrame(index=range(num_rows)), 0, {})
    except UserError:
        return None
    found = set()
    for task in tasks:
        if task.kind == "binary":
            known = task.values.codes >= 0
            by_split = [task.positive[rows][known[rows]] for rows in splits.values()]
            if all(positive.any() and not positive.all() for positive in by_split):
                found.add(task.name)
    return found


def _rank(found: set[str] | None, main_task: str) -> tuple[bool, bool, int]:
    return (False, False, 0) if found is None else (True, main_task in found, len(found))
