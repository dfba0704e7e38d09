"""Tasks: what a network learns to predict. Each kind of label has a class.

L logits: those of the first task, then those of the second, and so on.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from mmoe.data import schema_checks as check
from mmoe.errors import ArgumentError, UserError
from mmoe.tasks.binary import Binary
from mmoe.tasks.count import Count
from mmoe.tasks.multiclass import Multiclass
from mmoe.tasks.regression import Regression
from mmoe.tasks.task import Task

__all__ = ["Binary", "Count", "Multiclass", "Regression", "Task"]

KINDS: dict[str, type[Task]] = {kind.kind: kind for kind in (Binary, Multiclass, Regression, Count)}
# Fields that follow from the training rows, or that another key sets.
NOT_IN_CONFIG = ("name", "where_levels", "group_by", "classes", "mean", "std")


def logit_columns(tasks: Sequence[Task]) -> list[slice]:
    """The logits of each task among all L logits."""
    ends = accumulate((task.num_outputs for task in tasks), initial=0)
    return [slice(start, end) for start, end in pairwise(ends)]


def logit_names(tasks: Sequence[Task]) -> list[str]:
    """The name of the task that each of the L logits belongs to."""
    return [task.name for task in tasks for _ in range(task.num_outputs)]


def predictions_of(tasks: Sequence[Task], logits: Tensor) -> Tensor:
    """Turn logits [..., L] into probabilities, or values in the label's unit: [..., L] in float64."""
    columns = zip(tasks, logit_columns(tasks), strict=True)
    return torch.cat([task.predict(logits[..., own]) for task, own in columns], dim=-1)


def validation_metrics(tasks: Sequence[Task]) -> dict[str, bool]:
    """Names of all validation metrics, and whether larger values are better."""
    return {f"val/{t.name}/{name}": larger for t in tasks for name, larger in t.metric_names.items()}


def default_monitor(tasks: Sequence[Task]) -> str:
    """The validation metric that chooses the best epoch by default: the main metric of the main task."""
    return f"val/{tasks[0].name}/{tasks[0].main_metric}"


def with_groups(tasks: Sequence[Task], group_by: str) -> list[Task]:
    """The tasks; the binary ones also have the metric `grouped_auroc`, over the groups in a column.

    Raises:
        ArgumentError: no task is binary, or `group_by` is not text.
    """
    if not any(task.probability_column for task in tasks):
        raise ArgumentError(f"group_by={group_by}: needs a binary task")
    column = check.text("group_by", group_by)
    return [replace(task, group_by=column) if task.probability_column else task for task in tasks]


def gate_column(task: Task, expert: int) -> str:
    """Name the column that holds a task's gate weights for one expert."""
    return f"{task.name}_gate_{expert}"


def task_from_config(name: str, given: Any) -> Task:
    """The task that a configuration describes: a mapping with `column`, `kind` and the kind's options.

    Raises:
        ArgumentError: the mapping is not valid, or has a key that its kind does not know.
    """
    at = f"tasks.{name}"
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{at}={given}: must be a mapping with column, and options such as kind")
    kind = given.get("kind", "binary")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArgumentError(f"{at}.kind={kind}: must be one of {', '.join(KINDS)}")
    options = [one.name for one in fields(KINDS[kind]) if one.name not in NOT_IN_CONFIG]
    for key in given:
        if key not in ("kind", *options):
            every = {one.name for other in KINDS.values() for one in fields(other)}
            nearest = difflib.get_close_matches(str(key), options, 1, 0.5)
            meant = f"; did you mean {nearest[0]}?" if nearest and key not in every else ""
            rule = f"must be one of kind, {', '.join(options)} for a {kind} task{meant}"
            raise ArgumentError(f"{at}.{key}: {rule}")
    if "column" not in given:
        raise ArgumentError(f"{at}.column: must be given")
    values = {key: value for key, value in given.items() if key != "kind" and value is not None}
    return KINDS[kind](**values, name=name)


def task_to_config(task: Task) -> dict[str, Any]:
    """The mapping from which `task_from_config` makes the task."""
    options = {one.name: getattr(task, one.name) for one in fields(task) if one.name not in NOT_IN_CONFIG}
    defaults = {one.name: one.default for one in fields(task)}
    given = {key: value for key, value in options.items() if value != defaults[key]}
    if task.where and task.where_levels != defaults["where_levels"]:
        given["where"] = {task.where: list(task.where_levels)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return {"column": task.column, "kind": task.kind} | plain


def task_to_json(task: Task) -> dict[str, Any]:
    """The fields of a task and its kind, as plain values."""
    return {"kind": task.kind} | asdict(task)


def task_from_json(where: str, values: Any) -> Task:
    """The task that `task_to_json` stored; errors call its place `where`.

    Raises:
        UserError: the values are not those of a task.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a JSON object, is {type(values).__name__}")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        at = f"tasks.{values['name']}" if values.get("name") else where
        raise ArgumentError(f"{at}.kind={kind}: must be one of {', '.join(KINDS)}")
    names = [one.name for one in fields(KINDS[kind])]
    for one in fields(KINDS[kind]):
        if one.name not in values and one.default is MISSING:
            raise UserError(f"{where}: must have the key {one.name!r}")
    for name in values:
        if name not in ("kind", *names):
            raise UserError(f"{where}.{name}: must be one of kind, {', '.join(names)}")
    return KINDS[kind](**{name: value for name, value in values.items() if name != "kind"})
