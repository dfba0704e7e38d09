import numpy as np
import pandas as pd
import pytest
import torch

from mmoe.data.encode import check_labels, encode, fit_schema, with_modes
from mmoe.data.schema import Categorical, Schema, Task

TRAIN = pd.DataFrame(
    {
        "colour": pd.Categorical(["red", "blue", "red", "NA"]),
        "size": pd.Categorical(["?", "?", "L", "L"]),
        "age": [1.0, 2.0, 3.0, 10.0],
        "flat": [7.0] * 4,
        "label": pd.Categorical(["yes", "no", "no", "yes"]),
    }
)
TASKS = (Task("t", "label", ("yes",)),)
SCHEMA = fit_schema(TRAIN, ["colour", "size", "age", "flat"], TASKS, num_bins=48)


def test_statistics_are_those_of_the_training_frame():
    assert [c.levels for c in SCHEMA.categorical] == [("NA", "blue", "red"), ("?", "L")]
    age, flat = SCHEMA.numeric
    assert (age.mean, age.std) == (4.0, np.std([1, 2, 3, 10]))
    assert age.bins == (1.0, 2.0, 3.0, 10.0)
    assert (flat.mean, flat.std, flat.bins) == (7.0, 1.0, (7.0, 8.0))


def test_bins_are_quantiles_of_distinct_values():
    values = pd.DataFrame({"money": np.r_[np.zeros(900), np.arange(1, 101.0)]})
    (money,) = fit_schema(values, ["money"], (), num_bins=4).numeric
    assert money.bins == (0.0, 25.0, 50.0, 75.0, 100.0)


def test_other_frames_change_nothing_and_unseen_levels_get_the_unseen_code():
    frame = pd.DataFrame(
        {
            "colour": pd.Categorical(["green", "red"]),
            "size": pd.Categorical(["L", "XL"]),
            "age": [-5.0, 500.0],
            "flat": [0.0, 1.0],
            "label": pd.Categorical(["yes", "maybe"]),
        }
    )
    rows = encode(frame, SCHEMA)
    assert rows.codes.tolist() == [[5, 4], [2, 5]]
    assert rows.numerics.tolist() == [[-5.0, 0.0], [500.0, 1.0]]
    assert rows.labels.tolist() == [[1.0], [0.0]]


def test_codes_decode_to_the_levels():
    rows = encode(TRAIN, SCHEMA)
    levels = [level for column in SCHEMA.categorical for level in column.levels]
    assert [[levels[code] for code in row] for row in rows.codes] == TRAIN[["colour", "size"]].values.tolist()
    assert rows.codes.dtype == torch.int16
    assert rows.numerics.dtype == rows.labels.dtype == torch.float32


def test_more_levels_than_int16_has():
    many = pd.DataFrame({"id": pd.Categorical([f"{i:05d}" for i in range(40_000)])})
    schema = fit_schema(many, ["id"], (), num_bins=2)
    assert encode(many, schema).codes[:, 0].tolist() == list(range(40_000))


def test_a_label_with_one_class_is_refused():
    check_labels(torch.tensor([[0.0], [1.0]]), TASKS, "rows")
    for value, word in ((0.0, "lacks"), (1.0, "has")):
        with pytest.raises(ValueError, match=f"^rows, column label: task t must have.*{word} one of"):
            check_labels(torch.full((3, 1), value), TASKS, "rows")


def test_frequent_values_are_those_of_ten_rows():
    (money,) = fit_schema(
        pd.DataFrame({"money": [5.0] * 10 + [1.0] * 9 + [0.25] * 30}), ["money"], (), 4
    ).numeric
    assert money.values == (0.25, 5.0)
    (flat,) = fit_schema(pd.DataFrame({"flat": [5.0] * 10}), ["flat"], (), 4).numeric
    assert flat.values == (5.0,)


def test_the_most_frequent_levels_are_those_of_the_training_rows():
    columns = (Categorical("a", ("x", "y")), Categorical("b", ("u", "v", "w")))
    codes = torch.tensor([[0, 3], [1, 4], [1, 4], [5, 4]], dtype=torch.int16)  # 5 is unseen
    schema = with_modes(Schema(columns, (), ()), codes)
    assert [column.mode for column in schema.categorical] == ["y", "w"]
