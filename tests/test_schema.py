import pytest

from mmoe.data.schema import Categorical, Numeric, Schema, Task

SCHEMA = Schema(
    (Categorical("colour", ("NA", "rouge é")), Categorical("size", ("?",))),
    (Numeric("age", 41.5, 2.25, (0.0, 1 / 3, 90.0)),),
    (Task("bought", "income", ("50000+.",)),),
    rows="sample",
    files={"a.gz": "00ff"},
    num_rows={"train": 3},
)


def test_json_round_trip_is_exact():
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA


def test_unseen_code_follows_all_levels():
    assert SCHEMA.num_levels == 3


def test_a_task_needs_a_positive_level():
    with pytest.raises(ValueError, match=r"tasks.bought.positive=\[\]: must name"):
        Task("bought", "income", ())
