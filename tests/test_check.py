"""Whether rows are rows of a schema."""

import math
import re
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmoe.data.check_rows import check_rows
from mmoe.data.encode import Rows
from mmoe.data.schema import Categorical, Numeric, Schema, Task
from mmoe.errors import UserError

# Codes 0 and 1, 2 to 4, and 5; 6 is unseen.
SCHEMA = Schema(
    (Categorical("a", ("x", "y")), Categorical("b", ("x", "y", "z")), Categorical("c", ("x",))),
    (Numeric("n", 0.0, 1.0, (0.0, 1.0)), Numeric("m", 0.0, 1.0, (0.0, 1.0))),
    (Task("rich", "income", ("50000+.",)), Task("hours", "weeks", kind="regression")),
)


def rows(dtype: torch.dtype = torch.int16) -> Rows:
    return Rows(
        torch.tensor([[0, 2, 5], [1, 4, 5], [6, 6, 6], [1, 3, 6]], dtype=dtype),
        torch.tensor([[0.0, -1e30], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        torch.tensor([[0.0, -7.5], [1.0, 2.0], [0.0, 1e9], [1.0, 0.0]]),
    )


def replicas(given: Rows) -> Rows:
    return Rows(*(torch.stack([tensor, tensor]) for tensor in given))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_good_rows(dtype: torch.dtype):
    good = rows(dtype)
    check_rows(good, SCHEMA)
    check_rows(replicas(good), SCHEMA)
    for count in (0, 1):
        check_rows(Rows(*(tensor[:count] for tensor in good)), SCHEMA)


@pytest.mark.parametrize(
    ("field", "row", "column", "value", "message"),
    [
        ("codes", 1, 0, 2, "column a: must be a code from 0 to 1, or 6 where it is unseen; row 1 is 2"),
        ("codes", 1, 1, 1, "column b: must be a code from 2 to 4, or 6 where it is unseen; row 1 is 1"),
        ("codes", 0, 2, 4, "column c: must be a code from 5 to 5, or 6 where it is unseen; row 0 is 4"),
        ("codes", 3, 2, 7, "column c: must be a code from 5 to 5, or 6 where it is unseen; row 3 is 7"),
        ("codes", 3, 0, -1, "column a: must be a code from 0 to 1, or 6 where it is unseen; row 3 is -1"),
        ("codes", 3, 0, -(2**15), "row 3 is -32768"),
        ("codes", 3, 0, 2**15 - 1, "row 3 is 32767"),
        ("numerics", 2, 1, math.nan, "column m: must be a finite number; row 2 is nan"),
        ("numerics", 2, 0, math.inf, "column n: must be a finite number; row 2 is inf"),
        ("numerics", 2, 0, -math.inf, "column n: must be a finite number; row 2 is -inf"),
        ("labels", 3, 0, 2.0, "column income, task rich: must be 0 or 1; row 3 is 2.0"),
        ("labels", 3, 0, 0.5, "column income, task rich: must be 0 or 1; row 3 is 0.5"),
        ("labels", 3, 0, math.nan, "column income, task rich: must be 0 or 1; row 3 is nan"),
        ("labels", 0, 1, math.nan, "column weeks, task hours: must be a finite number; row 0 is nan"),
        ("labels", 0, 1, math.inf, "column weeks, task hours: must be a finite number; row 0 is inf"),
    ],
)
def test_a_wrong_value(field: str, row: int, column: int, value: float, message: str):
    wrong = rows()
    getattr(wrong, field)[row, column] = value
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        check_rows(wrong, SCHEMA)
    wrong = replicas(rows())
    getattr(wrong, field)[1, row, column] = value
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        check_rows(wrong, SCHEMA)


@pytest.mark.parametrize("field", Rows._fields)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:-1],
        lambda x: x[:, :-1],
        lambda x: torch.cat([x, x], 1),
        lambda x: x[0],
        lambda x: x[None],
        lambda x: x[None, None],
        lambda x: x.bool(),
        lambda x: x.float() if x.dtype == torch.int16 else x.long(),
    ],
)
def test_wrong_shapes_and_types(field: str, change: Callable[[Tensor], Tensor]):
    given = rows()
    with pytest.raises(UserError, match=r"^(codes|numerics|labels): must be "):
        check_rows(given._replace(**{field: change(getattr(given, field))}), SCHEMA)


def test_codes_in_a_type_that_the_unseen_code_does_not_fit():
    schema = Schema(
        (Categorical("a", ("x",)), Categorical("b", tuple(map(str, range(300))))), (), SCHEMA.tasks[:1]
    )
    given = Rows(torch.tensor([[0, 1], [0, 127]], dtype=torch.int8), torch.empty(2, 0), torch.ones(2, 1))
    check_rows(given, schema)
    given.codes[1, 0] = 45  # the unseen code, 301, modulo 256
    with pytest.raises(UserError, match=r"column a: .* or 301 where it is unseen; row 1 is 45"):
        check_rows(given, schema)


@pytest.mark.parametrize("left_out", Rows._fields)
def test_a_schema_without_columns_of_a_kind(left_out: str):
    parts = {"codes": SCHEMA.categorical, "numerics": SCHEMA.numeric, "labels": SCHEMA.tasks} | {left_out: ()}
    given = rows()
    given = given._replace(**{left_out: getattr(given, left_out)[:, :0]})
    check_rows(given, Schema(*parts.values()))


def test_a_check_is_quick():
    columns, count = 40, 200_000
    schema = Schema(tuple(Categorical(f"c{i}", ("x", "y")) for i in range(columns)), (), SCHEMA.tasks[:1])
    codes = torch.randint(0, 2, (count, columns)) + 2 * torch.arange(columns)
    given = Rows(codes.short(), torch.empty(count, 0), torch.ones(count, 1))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        check_rows(given, schema)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.2  # 0.04 s on one idle core
