"""Whether rows are rows of a schema.

R replicas, N rows, C categorical columns, M numeric columns, T tasks.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mmoe.data.encode import Rows
from mmoe.data.schema import Schema
from mmoe.errors import UserError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)


def check_rows(rows: Rows, schema: Schema) -> None:
    """Check shapes, types and the range of every value; the rows may be on any device.

    Raises:
        UserError: with the column and its first wrong value.
    """
    _check_shapes(rows, schema)
    check_codes(rows.codes, schema)
    wrong = ~rows.numerics.isfinite()
    if wrong.any():
        names = [column.name for column in schema.numeric]
        _refuse(rows.numerics, wrong, names, ["a finite number"] * len(names))
    binary = torch.tensor(
        [task.is_binary for task in schema.tasks], dtype=torch.bool, device=rows.labels.device
    )
    good = rows.labels.isfinite() & ((rows.labels == 0) | (rows.labels == 1) | ~binary)  # [..., N, T]
    if not good.all():
        names = [f"{task.column}, task {task.name}" for task in schema.tasks]
        rules = ["0 or 1" if task.is_binary else "a finite number" for task in schema.tasks]
        _refuse(rows.labels, ~good, names, rules)


def _check_shapes(rows: Rows, schema: Schema) -> None:
    shape = rows.labels.shape[:-1]  # [N] or [R, N]
    columns = (len(schema.categorical), len(schema.numeric), len(schema.tasks))
    for field, tensor, count in zip(Rows._fields, rows, columns, strict=True):
        name = {"codes": "categorical columns", "numerics": "numeric columns", "labels": "tasks"}[field]
        if tensor.ndim not in (2, 3) or tensor.shape[-1] != count or tensor.shape[:-1] != shape:
            raise UserError(
                f"{field}: must be rows of {count} {name}, as many rows as labels; the shape is"
                f" {list(tensor.shape)}, that of the labels {list(rows.labels.shape)}"
            )
        if field == "codes" and tensor.dtype not in INTEGERS:
            raise UserError(f"codes: must be integers, are {tensor.dtype}")
        if field != "codes" and not tensor.is_floating_point():
            raise UserError(f"{field}: must be floating-point numbers, are {tensor.dtype}")


def check_codes(codes: Tensor, schema: Schema) -> None:
    """Check that each code [..., N, C] is in the range of its column, or the unseen code.

    Raises:
        UserError: with the column and its first wrong code.
    """
    sizes = torch.tensor([len(column.levels) for column in schema.categorical], dtype=torch.int64)
    ends = sizes.cumsum(0)
    unseen = schema.num_levels
    # In the type of the codes a comparison is several times as fast.
    dtype = codes.dtype if unseen <= torch.iinfo(codes.dtype).max else torch.int64
    bounds = (ends - sizes, ends - 1, torch.full_like(ends, unseen))  # not a number, which would wrap around
    low, high, other = (bound.to(codes.device, dtype) for bound in bounds)
    good = (codes >= low) & (codes <= high) | (codes == other)
    if not good.all():
        names = [column.name for column in schema.categorical]
        ranges = zip((ends - sizes).tolist(), (ends - 1).tolist(), strict=True)
        rules = [f"a code from {first} to {last}, or {unseen} where it is unseen" for first, last in ranges]
        _refuse(codes, ~good, names, rules)


def _refuse(values: Tensor, wrong: Tensor, names: list[str], rules: list[str]) -> NoReturn:
    """Raise UserError for the first wrong value of `values` [..., N, K]; K names and rules."""
    where = wrong.nonzero()[0].tolist()
    row, column = where[-2:]
    value: Any = values[tuple(where)].item()
    raise UserError(f"column {names[column]}: must be {rules[column]}; row {row} is {value}")
