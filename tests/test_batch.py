import re
import time

import pytest
import torch

from mmoe.data.batch import Batch, check_levels, concatenate, split, take
from mmoe.data.columns import Categorical
from mmoe.data.schema import Schema
from mmoe.errors import UserError

# The codes are 0 and 1, 2 to 4, and 5; 6 is unseen.
SCHEMA = Schema(
    (Categorical("a", ("x", "y")), Categorical("b", ("x", "y", "z")), Categorical("c", ("x",))), (), ()
)
LEVELS = torch.tensor([[0, 2, 5], [1, 4, 5], [6, 6, 6], [1, 3, 6]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_valid_levels(dtype: torch.dtype):
    levels = LEVELS.to(dtype)
    check_levels(levels, SCHEMA)
    check_levels(torch.stack([levels, levels]), SCHEMA)
    for count in (0, 1):
        check_levels(levels[:count], SCHEMA)
    check_levels(levels[:, :0], Schema((), (), ()))


@pytest.mark.parametrize(
    ("row", "column", "code", "message"),
    [
        (1, 0, 2, "column a: must be a code from 0 to 1, or 6 for an unseen level; row 1 is 2"),
        (1, 1, 1, "column b: must be a code from 2 to 4, or 6 for an unseen level; row 1 is 1"),
        (0, 2, 4, "column c: must be a code from 5 to 5, or 6 for an unseen level; row 0 is 4"),
        (3, 2, 7, "column c: must be a code from 5 to 5, or 6 for an unseen level; row 3 is 7"),
        (3, 0, -1, "column a: must be a code from 0 to 1, or 6 for an unseen level; row 3 is -1"),
        (3, 0, -(2**15), "row 3 is -32768"),
        (3, 0, 2**15 - 1, "row 3 is 32767"),
    ],
)
def test_an_invalid_code_is_named(row: int, column: int, code: int, message: str):
    levels = LEVELS.short()
    replicas = torch.stack([levels, levels])
    levels[row, column] = replicas[1, row, column] = code
    for wrong in (levels, replicas):
        with pytest.raises(UserError, match=f"{re.escape(message)}$"):
            check_levels(wrong, SCHEMA)


def test_an_unseen_code_that_the_type_of_the_levels_cannot_hold():
    schema = Schema((Categorical("a", ("x",)), Categorical("b", tuple(map(str, range(300))))), (), ())
    levels = torch.tensor([[0, 1], [0, 127]], dtype=torch.int8)
    check_levels(levels, schema)
    levels[1, 0] = 45  # the unseen code, 301, modulo 256
    with pytest.raises(UserError, match=r"column a: .* or 301 for an unseen level; row 1 is 45"):
        check_levels(levels, schema)


def test_the_check_is_fast():
    columns, count = 40, 200_000
    schema = Schema(tuple(Categorical(f"c{i}", ("x", "y")) for i in range(columns)), (), ())
    levels = (torch.randint(0, 2, (count, columns)) + 2 * torch.arange(columns)).short()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        check_levels(levels, schema)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.2  # 0.04 s on one idle core


@pytest.mark.parametrize("with_masks", [True, False])
def test_masks_weights_and_groups_stay_with_their_rows(with_masks: bool):
    numbers = torch.arange(10.0)[:, None]
    masks = (numbers > 4, 2 * numbers) if with_masks else (None, None)
    groups = 3 * numbers.long() if with_masks else None
    rows = Batch(numbers.short(), numbers, numbers, *masks, groups=groups)
    order = torch.tensor([7, 2, 9, 0])
    for part, expected in [
        (take(rows, order), order),
        *zip(split(rows, 4, 3), torch.arange(10).split(4), strict=True),
        (concatenate(list(split(rows, 3, 2))), torch.arange(10)),
        (rows.map(lambda tensor: tensor[:2]), torch.arange(2)),
    ]:
        assert part.numbers[:, 0].tolist() == expected.tolist()
        if with_masks:
            assert torch.equal(part.known, part.numbers > 4)
            assert torch.equal(part.weights, 2 * part.numbers)
            assert torch.equal(part.groups, 3 * part.numbers.long())
        else:
            assert part.known is None
            assert part.weights is None
            assert part.groups is None
