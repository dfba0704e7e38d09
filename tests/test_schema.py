import json
import re
from typing import Any

import numpy as np
import pytest

from mmoe.data.columns import Categorical, Numeric
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.tasks import Binary, Regression

SCHEMA = Schema(
    (Categorical("colour", ("NA", "rouge é"), 1), Categorical("size", ("?",))),
    (Numeric("age", 41.5, 2.25, (0.0, 1 / 3, 90.0)),),
    (Binary("income", ("50000+.",), name="bought"),),
    row_origin="sample",
    files={"a.gz": "00ff"},
    num_rows={"train": 3},
)


def test_json_round_trip_is_exact():
    read = Schema.from_json(SCHEMA.to_json())
    assert read == SCHEMA
    assert [column.mode for column in read.categorical] == [1, 0]


def test_modes_are_optional_and_not_compared():
    text = re.sub(r',\s*"mode": [0-9]+', "", SCHEMA.to_json())
    assert "mode" not in text
    assert Schema.from_json(text) == SCHEMA


def test_unseen_code_follows_all_levels():
    assert SCHEMA.num_codes == 3


def test_a_task_needs_a_positive_level():
    with pytest.raises(ValueError, match=r"tasks.bought.positive=\[\]: must name"):
        Schema((), (), (Binary("income", name="bought"),))


def changed(path: str, value: Any) -> str:
    """The JSON of SCHEMA with another value at a path of keys and indices; `...` deletes the value."""
    stored = json.loads(SCHEMA.to_json())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    part = stored
    for key in parents:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("categorical", ..., "schema: must have the key 'categorical'"),
        ("categorical", None, "categorical=None: must be a list"),
        ("categorical", {}, "categorical={}: must be a list"),
        ("categorical.0", "colour", r"categorical\[0\]: must be a JSON object, is str"),
        ("categorical.0.levels", ..., r"categorical\[0\]: must have the key 'levels'"),
        ("categorical.0.colour", 1, r"categorical\[0\].colour: must be one of name, levels, mode,"),
        ("categorical.0.name", "", "categorical.name='': must be text that is not empty"),
        ("categorical.0.name", "size", "columns: must have different names; 2 have the name 'size'"),
        ("categorical.0.name", "age", "columns: must have different names; 2 have the name 'age'"),
        ("categorical.0.name", None, "categorical.name=None: must be text"),
        ("categorical.0.levels", "ab", "categorical.colour.levels='ab': must be a list"),
        ("categorical.0.levels", ["b", "a"], "categorical.colour.levels: must be unique and sorted"),
        ("categorical.0.levels", ["a", "a"], "categorical.colour.levels: must be unique and sorted"),
        ("categorical.0.levels", ["a", 1], "categorical.colour.levels: must be a list of text, holds 1"),
        ("categorical.0.levels", ["a", None], "categorical.colour.levels: must be a list of text"),
        ("categorical.0.mode", "blue", "categorical.colour.mode=blue: must be an integer of at least 0"),
        ("categorical.0.mode", 2, "categorical.colour.mode=2: must be below 2, the number of codes"),
        ("categorical.0.size", -1, "categorical.colour.size=-1: must be an integer of at least 0"),
        ("categorical.0.has_rare", 1, "categorical.colour.has_rare=1: must be true or false"),
        ("categorical.0.part", "second", "categorical.colour.part=second: must be one of year, month"),
        ("categorical.0.buckets", 5, "categorical.colour.buckets=5: must be 0 for a column with levels"),
        (
            "categorical.0.max_values",
            3,
            "categorical.colour.max_values=3: must be 1, because it is not multi",
        ),
        ("categorical.0.size", 4, "categorical: one-hot columns must come first, then those with a size"),
        ("numeric.0.origin", "x", "numeric.age.origin='x': must be a finite number"),
        ("numeric.0.mean", "1", "numeric.age.mean='1': must be a finite number"),
        ("numeric.0.mean", None, "numeric.age.mean=None: must be a finite number"),
        ("numeric.0.mean", True, "numeric.age.mean=True: must be a finite number"),
        ("numeric.0.mean", 1e39, r"numeric.age.mean=1e\+39: must be a finite number"),
        ("numeric.0.std", 0, "numeric.age.std=0.0: must be above 0"),
        ("numeric.0.std", 1e-60, "numeric.age.std=1e-60: must be above 0"),
        ("numeric.0.std", -1, "numeric.age.std=-1.0: must be above 0"),
        ("numeric.0.bins", [1], r"numeric.age.bins=\[1.0\]: must have at least 2 edges"),
        ("numeric.0.bins", [], r"numeric.age.bins=\[\]: must have at least 2 edges"),
        ("numeric.0.bins", [1, 0], "numeric.age.bins: must increase as float32, 1.0 is followed by 0.0"),
        ("numeric.0.bins", [1, 1], "numeric.age.bins: must increase"),
        ("numeric.0.bins", [1e8, 1e8 + 1], "numeric.age.bins: must increase as float32"),
        ("numeric.0.bins", [0, 1e-45], "numeric.age.bins: must be bins whose width"),
        ("numeric.0.bins", [-3e38, 3e38], "numeric.age.bins: must be bins whose width"),
        ("numeric.0.bins", [0, "1"], r"numeric.age.bins\[1\]='1': must be a finite number"),
        ("numeric.0.bins", 5, "numeric.age.bins=5: must be a list"),
        ("numeric.0.frequent_values", [2, 1], "numeric.age.frequent_values: must increase"),
        (
            "tasks.0.kind",
            "ordinal",
            "tasks.bought.kind=ordinal: must be one of binary, multiclass, regression, count",
        ),
        ("tasks.0.kind", [], r"tasks.bought.kind=\[\]: must be"),
        ("tasks.0.positive", [], r"tasks.bought.positive=\[\]: must name"),
        ("tasks.0.positive", "50000+.", r"tasks.bought.positive='50000\+.': must be a list"),
        ("tasks.0.column", None, "tasks.bought.column=None: must be text"),
        ("tasks.0.name", "", "tasks.name='': must be text that is not empty"),
        ("tasks.0.mean", 5, r"tasks\[0\].mean: must be one of kind, column, name"),
        ("tasks.0.column", ..., r"tasks\[0\]: must have the key 'column'"),
        ("tasks.0.focal_gamma", -1, "tasks.bought.focal_gamma=-1: must be a finite number of at least 0"),
        ("tasks.0.class_weights", [1], r"tasks.bought.class_weights=\[1\]: must have 2 numbers"),
        ("row_origin", "mine", "row_origin=mine: must be one of official, sample, synthetic, custom"),
        ("row_origin", None, "row_origin=None: must be"),
        ("files", None, "files=None: must be a mapping"),
        ("files", {"a": 1}, "files.a=1: must be text"),
        ("num_rows", {"train": -1}, "num_rows.train=-1: must be an integer of at least 0"),
        ("num_rows", {"train": 1.5}, "num_rows.train=1.5: must be"),
        ("num_rows", {"train": "3"}, "num_rows.train=3: must be"),
        ("columns", [], "schema.columns: must be one of categorical, numeric"),
    ],
)
def test_an_invalid_value_gives_a_one_line_error(path: str, value: Any, message: str):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        Schema.from_json(changed(path, value))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"a"', SCHEMA.to_json()[:300], "[" * 10**5, "9" * 5000]
)
def test_other_text_gives_a_one_line_error(text: str):
    with pytest.raises(UserError, match="must be") as caught:
        Schema.from_json(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_must_be_finite(constant: str):
    with pytest.raises(UserError, match=r"^numeric.age.mean=(nan|-?inf): must be a finite number"):
        Schema.from_json(SCHEMA.to_json().replace("41.5", constant))


def test_levels_may_be_sorted_as_integers():
    assert Categorical("group", ("9", "10", "11")).levels == ("9", "10", "11")
    assert Categorical("group", ("10", "9")).levels == ("10", "9")
    with pytest.raises(UserError, match="must be unique and sorted"):
        Categorical("group", ("9", "10", "a"))


def test_numpy_numbers_and_lists_become_plain_values():
    task = Regression("y", name="y", mean=np.float32(2.5), std=np.float64(4))
    column = Numeric("n", np.float64(1), np.int64(2), [np.float32(0), 1], [])
    schema = Schema([Categorical("c", ["a"])], [column], [task], num_rows={"train": np.int64(5)})
    assert Schema.from_json(schema.to_json()) == schema
    assert schema.tasks[0].is_scaled
    assert not Regression("y", name="y").is_scaled
