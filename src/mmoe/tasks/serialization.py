"""Tasks as plain values: in a configuration, and in the JSON of a schema."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from mmoe.errors import ArgumentError, UserError
from mmoe.tasks.binary import Binary
from mmoe.tasks.count import Count
from mmoe.tasks.multiclass import Multiclass
from mmoe.tasks.regression import Regression
from mmoe.tasks.task import Task

KINDS: dict[str, type[Task]] = {kind.kind: kind for kind in (Binary, Multiclass, Regression, Count)}
# Fields that follow from the training rows, or that another key sets.
NOT_IN_CONFIG = ("name", "where_levels", "group_by", "classes", "mean", "std")


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
    """The mapping from which `task_from_config` makes the task, without the fields in `NOT_IN_CONFIG`."""
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
