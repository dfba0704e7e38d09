from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from mmoe.data.column_options import ColumnOptions
from mmoe.data.columns import Categorical
from mmoe.data.encode import encode
from mmoe.data.fit_numbers import fit_numeric
from mmoe.data.fit_schema import fit_schema
from mmoe.data.schema import Schema
from mmoe.data.splits import with_modes
from mmoe.errors import UserError
from mmoe.tasks import Binary, Regression

TRAIN = pd.DataFrame(
    {
        "colour": pd.Categorical(["red", "blue", "red", "NA"]),
        "size": pd.Categorical(["?", "?", "L", "L"]),
        "age": [1.0, 2.0, 3.0, 10.0],
        "flat": [7.0] * 4,
        "label": pd.Categorical(["yes", "no", "no", "yes"]),
    }
)
TASKS = (Binary("label", ("yes",), name="t"),)
SCHEMA = fit_schema(TRAIN, ["colour", "size", "age", "flat"], TASKS, num_bins=48)


def test_statistics_come_from_the_training_frame():
    assert [c.levels for c in SCHEMA.categorical] == [("NA", "blue", "red"), ("?", "L")]
    age, flat = SCHEMA.numeric
    assert (age.mean, age.std) == (4.0, np.std([1, 2, 3, 10]))
    assert age.bins == (1.0, 2.0, 3.0, 10.0)
    assert (flat.mean, flat.std, flat.bins) == (7.0, 1.0, (7.0, 8.0))


def test_bins_are_quantiles_of_distinct_values():
    values = pd.DataFrame({"money": np.r_[np.zeros(900), np.arange(1, 101.0)]})
    (money,) = fit_schema(values, ["money"], (), num_bins=4).numeric
    assert money.bins == (0.0, 25.0, 50.0, 75.0, 100.0)


def test_levels_outside_the_vocabulary_get_the_unseen_code():
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
    assert rows.levels.tolist() == [[5, 4], [2, 5]]
    assert rows.numbers.tolist() == [[-5.0, 0.0], [500.0, 1.0]]
    assert rows.labels.tolist() == [[1.0], [0.0]]


def test_codes_decode_to_the_levels():
    rows = encode(TRAIN, SCHEMA)
    levels = [level for column in SCHEMA.categorical for level in column.levels]
    assert [[levels[code] for code in row] for row in rows.levels] == TRAIN[
        ["colour", "size"]
    ].values.tolist()
    assert rows.levels.dtype == torch.int16
    assert rows.numbers.dtype == rows.labels.dtype == torch.float32


def test_more_levels_than_int16_can_number():
    many = pd.DataFrame({"id": pd.Categorical([f"{i:05d}" for i in range(40_000)])})
    schema = fit_schema(many, ["id"], (), num_bins=2)
    assert encode(many, schema).levels[:, 0].tolist() == list(range(40_000))


def test_missing_labels_are_unknown():
    gaps = TRAIN.assign(label=["yes", None, "no", "no"])
    rows = encode(gaps, SCHEMA)
    assert rows.labels[:, 0].tolist() == [1, 0, 0, 0]
    assert rows.known[:, 0].tolist() == [True, False, True, True]
    assert encode(TRAIN, SCHEMA).known is None
    assert encode(TRAIN, SCHEMA).weights is None


def test_values_in_ten_rows_are_frequent():
    (money,) = fit_schema(
        pd.DataFrame({"money": [5.0] * 10 + [1.0] * 9 + [0.25] * 30}), ["money"], (), 4
    ).numeric
    assert money.frequent_values == (0.25, 5.0)
    (flat,) = fit_schema(pd.DataFrame({"flat": [5.0] * 10}), ["flat"], (), 4).numeric
    assert flat.frequent_values == (5.0,)


def test_modes_are_the_most_frequent_levels_of_the_training_rows():
    columns = (Categorical("a", ("x", "y")), Categorical("b", ("u", "v", "w")))
    levels = torch.tensor([[0, 3], [1, 4], [1, 4], [5, 4]], dtype=torch.int16)  # 5 is unseen
    schema = with_modes(Schema(columns, (), ()), levels)
    assert [column.mode for column in schema.categorical] == [1, 2]


BOOLEANS = [
    ("False", "True"),
    ("false", "true"),
    ("FALSE", "TRUE"),
    ("0", "1"),
    (0, 1),
    (False, True),
    (0.0, 1.0),
]


@pytest.mark.parametrize("ours", BOOLEANS)
def test_new_rows_may_spell_booleans_in_another_way(ours: tuple[object, object]):
    training = pd.DataFrame({"flag": pd.Series([*ours, None], dtype=object)})
    schema = fit_schema(training, {"flag": ColumnOptions("categorical")}, TASKS[:0], 4)
    for theirs in BOOLEANS:
        for extra in (None, "perhaps", "2"):  # the other levels of a frame do not matter
            frame = pd.DataFrame({"flag": pd.Series([theirs[1], extra, theirs[0]], dtype=object)})
            other = 3 if extra else 2  # unseen, or missing
            assert encode(frame, schema).levels[:, 0].tolist() == [1, other, 0]
            assert encode(frame[:1], schema).levels[:, 0].tolist() == [1]
    mixed = pd.DataFrame({"flag": pd.Series(["TRUE", "true", "1", "False"], dtype=object)})
    assert encode(mixed, schema).levels[:, 0].tolist() == [1, 1, 1, 0]


def test_levels_that_are_no_booleans_are_never_respelled():
    for levels in (["0", "1", "2"], ["true", "1"], ["yes", "no"]):
        training = pd.DataFrame({"flag": levels})
        schema = fit_schema(training, {"flag": ColumnOptions("categorical")}, TASKS[:0], 4)
        found = encode(pd.DataFrame({"flag": ["True", "FALSE"]}), schema)
        assert (found.levels == len(levels)).all()


def test_a_missing_level_has_a_code_if_training_rows_had_one():
    frame = TRAIN.assign(colour=pd.Categorical([None, "red", None, "NA"]))
    assert encode(frame, SCHEMA).levels[:, 0].tolist() == [5, 2, 5, 0]
    schema = fit_schema(frame, ["colour", "size"], TASKS, num_bins=48)  # missing in training: its own code
    assert schema.categorical[0].levels == ("NA", "red")
    assert schema.categorical[0].has_missing
    assert encode(frame, schema).levels[:, 0].tolist() == [2, 1, 2, 0]
    assert encode(TRAIN, schema).levels[:, 0].tolist() == [1, 5, 1, 0]
    empty = fit_schema(TRAIN.assign(colour=pd.Categorical([None] * 4)), ["colour"], TASKS, num_bins=48)
    assert empty.categorical[0].levels == ()
    assert encode(TRAIN, empty).levels.tolist() == [[1]] * 4
    assert with_modes(empty, encode(TRAIN, empty).levels).categorical[0].mode == 0


@pytest.mark.parametrize("dtype", [object, "str", "string", "category"])
def test_columns_of_text_are_categorical(dtype: str):
    frame = TRAIN.assign(**{name: TRAIN[name].astype(dtype) for name in ("colour", "size", "label")})
    assert fit_schema(frame, ["colour", "size", "age", "flat"], TASKS, num_bins=48) == SCHEMA
    for ours, theirs in zip(encode(frame, SCHEMA)[:3], encode(TRAIN, SCHEMA)[:3], strict=True):
        assert torch.equal(ours, theirs)
    gaps = frame.assign(colour=pd.Series([None, "red", "green", "NA"]).astype(dtype))
    assert encode(gaps, SCHEMA).levels[:, 0].tolist() == [5, 2, 5, 0]


def test_integer_levels_become_text():
    frame = pd.DataFrame({"code": pd.Categorical([10, 9, 10]), "label": [1, 0, 1]})
    tasks = (Binary("label", ("1",), name="t"),)
    schema = fit_schema(frame, ["code"], tasks, num_bins=2)
    assert schema.categorical[0].levels == ("10", "9")
    rows = encode(frame.assign(code=["9", "10", "11"]), schema)
    assert rows.levels[:, 0].tolist() == [1, 0, 2]
    assert rows.labels[:, 0].tolist() == [1, 0, 1]


def test_levels_in_other_spellings():
    frame = pd.DataFrame({"code": ["4", " 5.0", "x"], "flag": ["true", "false", "true"]})
    schema = fit_schema(frame, ["code", "flag"], (), num_bins=2)
    assert [column.levels for column in schema.categorical] == [("4", "5.0", "x"), ("false", "true")]
    others = pd.DataFrame({"code": ["4.0", "5", "x\t"], "flag": [True, False, True]})
    assert encode(others, schema).levels.tolist() == encode(frame, schema).levels.tolist()
    both = Schema((Categorical("code", ("4", "4.0")),), (), ())
    assert encode(pd.DataFrame({"code": ["4", "4.0", "4.00"]}), both).levels[:, 0].tolist() == [0, 1, 0]
    decimals = pd.DataFrame({"code": pd.array([Decimal("4.00"), Decimal("1.50")], object)})
    (code,) = fit_schema(decimals, {"code": ColumnOptions("categorical")}, (), num_bins=2).categorical
    assert code.levels == ("1.5", "4")
    truths = TRAIN.assign(age=["TRUE", "false", "+5", " 2."])
    assert encode(truths, SCHEMA).numbers[:, 0].tolist() == [1, 0, 5, 2]


@pytest.mark.parametrize("dtype", ["str", pd.ArrowDtype(pa.string()), "category"])
def test_empty_pieces_are_no_levels(dtype: str):
    frame = pd.DataFrame({"tags": ["a||b", "b|", "| a |", "|", " ", None]}).astype(dtype)
    options = {"tags": ColumnOptions("multi", separator="|")}
    schema = fit_schema(frame, options, (), num_bins=2)
    (tags,) = schema.categorical
    assert (tags.levels, tags.max_values, tags.has_missing) == (("a", "b"), 2, True)
    assert encode(frame, schema).levels.tolist() == [[0, 1], [1, 3], [0, 3], [3, 3], [2, 3], [2, 3]]
    lists = pd.DataFrame({"tags": [["a", "", "b"], ["b", None], [" a"], [], None, None]})
    assert encode(lists, schema).levels.tolist() == encode(frame, schema).levels.tolist()
    fixed = pa.array([["a", "b"], ["b", None], None], pa.list_(pa.string(), 2))
    fixed_lists = pd.DataFrame({"tags": pd.Series(fixed, dtype=pd.ArrowDtype(fixed.type))})
    assert encode(fixed_lists, schema).levels.tolist() == [[0, 1], [1, 3], [2, 3]]


def test_values_may_have_to_be_present():
    for column, value in (("colour", None), ("colour", " "), ("age", np.nan), ("age", " ")):
        frame = TRAIN.assign(**{column: [*TRAIN[column].astype(object)[:2], value, TRAIN[column][3]]})
        frame["age"] = frame["age"].astype(str).replace("nan", None)
        encode(frame, SCHEMA)
        with pytest.raises(UserError, match=f"column {column}, row 2: must not be missing"):
            encode(frame, SCHEMA, may_be_missing=False)
        numbers = pd.to_numeric(frame["age"], errors="coerce")
        schema = fit_schema(frame.assign(age=numbers), ["colour", "age"], TASKS, 48)
        encode(frame, schema, may_be_missing=False)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int8", "uint16", "float32", object, "float[pyarrow]"])
def test_numbers_may_have_any_type(dtype: str):
    frame = TRAIN.assign(age=TRAIN["age"].astype(dtype))
    assert encode(frame, SCHEMA).numbers[:, 0].tolist() == [1, 2, 3, 10]
    assert fit_schema(frame, ["age"], (), 48).numeric[0].bins == (1, 2, 3, 10)


NUMBER = Regression("age", name="n")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"age": [1.0, 2.0, np.inf, 4.0]}, "column age, row 2: must be a finite number.*, is inf"),
        ({"age": [1.0, 2.0, 3.0, -1e39]}, r"column age, row 3: must be a finite number.*, is -1e\+39"),
        ({"age": ["1", "2", "x", "4"]}, "column age, row 2: must be a number, is 'x'$"),
        (
            {"age": ["1,5", "2", "3", "4"]},
            "column age, row 0: must be a number, is '1,5'; csv.decimal=',' reads",
        ),
        ({"age": pd.Categorical([1.0, 2.0, 3.0, 4.0])}, "column age: must hold numbers, holds"),
        ({"age": pd.to_datetime(["2020-01-01"] * 4)}, "column age: must hold numbers, holds datetime64"),
        ({"age": [1j, 2, 3, 4]}, "column age: must hold numbers, holds complex"),
        ({"size": [1j, 2.0, 3.0, 4.0]}, "column size: must hold text, holds 1j"),
        ({"size": [["a"]] * 4}, "column size: must hold text, holds mixed objects"),
        ({"label": [["a"]] * 4}, "column label: must hold text, holds mixed objects"),
    ],
)
def test_values_that_cannot_be_encoded(columns: dict[str, object], message: str):
    frame = TRAIN.assign(**columns).set_index(np.arange(10, 14))
    schema = fit_schema(TRAIN, ["size", "age"], (*TASKS, NUMBER), num_bins=48)
    with pytest.raises(UserError, match=f"^{message}"):
        encode(frame, schema)
    if "label" in columns or "is missing" in message or "is inf" in message:
        with pytest.raises(UserError, match=r"^column"):
            fit_schema(frame, ["age"], (*TASKS, NUMBER), num_bins=48)


def test_columns_that_are_missing_or_occur_twice():
    with pytest.raises(
        UserError, match=r"^column age is missing; the columns are colour, size, flat, label$"
    ):
        encode(TRAIN.drop(columns="age"), SCHEMA)
    twice = pd.concat([TRAIN, TRAIN[["age"]]], axis=1)
    for call in (lambda: encode(twice, SCHEMA), lambda: fit_schema(twice, ["age"], TASKS, 48)):
        with pytest.raises(UserError, match=r"^column age occurs 2 times$"):
            call()
    for features, tasks in ((["none"], TASKS), (["age"], (Binary("none", ("x",), name="t"),))):
        with pytest.raises(UserError, match=r"^column none is missing; the columns are"):
            fit_schema(TRAIN, features, tasks, 48)
    with pytest.raises(UserError, match=r"^columns: must have different names; 2 have the name 'age'"):
        fit_schema(TRAIN, ["age", "age"], TASKS, 48)
    with pytest.raises(UserError, match=r"^column age: must have at least one row"):
        fit_schema(TRAIN[:0], ["age"], (), 48)
    assert encode(TRAIN[:0], SCHEMA).levels.shape == (0, 2)


def test_regressions_get_the_scale_of_the_training_labels():
    tasks = (*TASKS, NUMBER, Regression("flat", name="f"))
    binary, number, flat = fit_schema(TRAIN, ["size"], tasks, 48).tasks
    assert binary == TASKS[0]
    assert (number.mean, number.std) == pytest.approx((4, np.std([1, 2, 3, 10])))
    assert (flat.mean, flat.std) == (7.0, 1.0)


ADJACENT = np.nextafter(np.float32(1e8), np.float32(2e8))
COLUMNS = {
    "constant": np.full(9, 7.0),
    "constant above 2 ** 24": np.full(9, 1e8),
    "huge": np.full(9, 1e30),
    "huge and negative": np.full(9, -1e30),
    "largest": np.full(9, 3.4e38),
    "all of float32": np.array([-3.4e38, 0.0, 3.4e38]),
    "two ends": np.array([-3.4e38, 3.4e38]),
    "adjacent": np.array([1e8, ADJACENT]),
    "one number for float32": 1e8 + np.arange(9) / 10,
    "denormal": np.array([0.0, 1e-45, 1e-40]),
    "denormal differences": np.array([0.0, 1e-45, 1.0]),
    "tiny": np.array([0.0, 1e-30, 3e-30]),
    "far from 0": 1e8 + 24.0 * np.arange(300),
    "wide": np.r_[np.arange(100.0), 1e30],
    "one row": np.array([3.5]),
    "integers": np.array([2**60, 2**60 + 1, 5]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_bins_and_scales_can_be_used_in_float32(name: str):
    values = COLUMNS[name]
    column = fit_numeric("c", values, 48)
    edges, std = np.float32(column.bins), np.float32(column.std)
    assert (np.diff(edges) > 0).all()
    assert np.isfinite(1 / np.diff(edges)).all()
    assert np.isfinite(edges[:-1] / np.diff(edges)).all()
    assert 0 < std < np.inf
    assert (column.origin > 0) is (name == "one number for float32")
    if len(set(np.float32(values - column.origin))) == 1:
        assert column.std == 1
        assert column.bins[0] == pytest.approx(values[0], rel=0.75 if values[0] > 1e38 else 1e-6)


def test_more_distinct_numbers_than_torch_quantile_takes():
    values = np.concatenate([np.arange(2**24, dtype=np.float32), -np.arange(1, 2**20, dtype=np.float32)])
    column = fit_numeric("c", values, 8)
    assert (column.bins[0], column.bins[-1]) == (1 - 2**20, 2**24 - 1)
    np.testing.assert_allclose(column.bins, np.quantile(values, np.linspace(0, 1, 9)), atol=2)
