import re

import pytest

from mmoe.data.schema import Categorical, Numeric, Schema, Task

SCHEMA = Schema(
    (Categorical("colour", ("NA", "rouge é"), "rouge é"), Categorical("size", ("?",))),
    (Numeric("age", 41.5, 2.25, (0.0, 1 / 3, 90.0)),),
    (Task("bought", "income", ("50000+.",)),),
    rows="sample",
    files={"a.gz": "00ff"},
    num_rows={"train": 3},
)


def test_json_round_trip_is_exact():
    read = Schema.from_json(SCHEMA.to_json())
    assert read == SCHEMA
    assert [column.mode for column in read.categorical] == ["rouge é", ""]


def test_a_schema_without_modes_is_the_same():
    text = re.sub(r',\s*"mode": "[^"]*"', "", SCHEMA.to_json())
    assert "mode" not in text
    assert Schema.from_json(text) == SCHEMA


def test_unseen_code_follows_all_levels():
    assert SCHEMA.num_levels == 3


def test_a_task_needs_a_positive_level():
    with pytest.raises(ValueError, match=r"tasks.bought.positive=\[\]: must name"):
        Task("bought", "income", ())
