"""Raw rows scored with an exported file, without torch: the same predictions as `Run.predict`."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import mmoe
from mmoe import Run
from mmoe.data.encode import encode
from mmoe.export import export
from mmoe.models import onnx_scorer
from mmoe.models.onnx_scorer import OnnxScorer

UTC = datetime.UTC
DAY = 86400
COLUMNS = {
    "city": "categorical",
    "code": "categorical",
    "half": "categorical",
    "flag": "categorical",
    "bit": "categorical",
    "user": {"kind": "categorical", "encoding": "embedding", "size": 4, "min_count": 3},
    "query": {"kind": "categorical", "encoding": "hash", "buckets": 50, "size": 4},
    "tags": {"kind": "multi", "separator": "|"},
    "ids": {"kind": "multi", "encoding": "embedding", "size": 3, "max_values": 2},
    "joined": "datetime",
    "seen": "datetime",
    "amount": "numeric",
    "large": "numeric",
    "whole": "numeric",
    "empty": "numeric",
}
TASKS = {
    "click": "clicked",
    "spend": mmoe.Regression("spend", where="clicked"),
    "plan": mmoe.Multiclass("plan"),
    "visits": mmoe.Count("visits"),
}


def frame(count: int, seed: int) -> pd.DataFrame:
    """Rows with every kind of column; most have missing values."""
    draw = np.random.default_rng(seed)
    days = draw.integers(0, 900 * DAY, count)
    letters = np.array(["a", "b", "c", "d"])
    clicked = draw.integers(0, 2, count)

    def with_gaps(values: object) -> np.ndarray:
        return np.where(draw.random(count) < 0.1, None, np.array(values, object))

    rows = {
        "city": with_gaps(draw.choice(["Aarhus", "Bonn", "", " Cork"], count)),
        "code": draw.integers(-2, 5, count),
        "half": np.where(draw.random(count) < 0.1, np.nan, draw.integers(0, 6, count) / 2),
        "flag": draw.random(count) < 0.5,
        "bit": draw.integers(0, 2, count),
        "user": with_gaps([f"u{i}" for i in draw.geometric(0.05, count)]),
        "query": with_gaps([f"größe {i}" for i in draw.integers(0, 90, count)]),
        "tags": with_gaps(["|".join(draw.choice(letters, n)) for n in draw.integers(0, 5, count)]),
        "ids": [None if n > 4 else draw.integers(0, 300, n).tolist() for n in draw.integers(0, 6, count)],
        "joined": pd.Series(pd.Timestamp("1969-01-01") + pd.to_timedelta(days, "s")),
        "seen": 1_600_000_000 + days,
        "amount": np.where(draw.random(count) < 0.1, np.nan, draw.gamma(2.0, 10.0, count)),
        "large": 10**12 + draw.integers(0, 1000, count),
        "whole": draw.integers(0, 2**60, count),
        "empty": np.full(count, np.nan),
        "clicked": clicked,
        "spend": np.where(clicked, draw.normal(500, 50, count), np.nan),
        "plan": draw.choice(["gold", "silver", "bronze"], count),
        "visits": draw.poisson(3, count),
    }
    made = pd.DataFrame(rows)
    return made.assign(joined=made["joined"].where(draw.random(count) > 0.1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("scorer")
    table = mmoe.Table(frame(400, 0), TASKS, columns=COLUMNS)
    quick = ["trainer.max_epochs=1", "logger=none", "figures=false", "learner.optimizer.lr=0.01"]
    run = mmoe.fit(table, folder / "run", *quick)
    export(run)
    return run


@pytest.fixture(scope="module")
def scorer(run: Run) -> OnnxScorer:
    return OnnxScorer(run.folder / "network.onnx")


NEW = frame(300, 1).drop(columns=["clicked", "spend", "plan", "visits"])


def assert_same_codes(run: Run, scorer: OnnxScorer, raw: pd.DataFrame, given: object) -> None:
    expected, found = encode(raw, run.input_schema), scorer.encode(given)
    np.testing.assert_array_equal(found["levels"], expected.levels)
    np.testing.assert_array_equal(found["numbers"], expected.numbers)
    assert (found["levels"].dtype, found["numbers"].dtype) == (np.int64, np.float32)


def test_the_schema_has_every_kind_of_column(run: Run):
    columns = {column.name: column for column in run.schema.categorical}
    assert columns.keys() >= {"joined.hour", "joined.weekday", "seen.month", "seen.year"}
    assert columns["user"].has_rare
    assert columns["user"].has_missing
    assert columns["query"].buckets == 50
    assert (columns["tags"].max_values, columns["ids"].max_values) == (4, 2)
    assert columns["flag"].levels == ("False", "True")
    numbers = {column.name: column for column in run.schema.numeric}
    assert numbers["large"].origin
    assert not numbers["amount"].origin
    assert numbers["empty"].has_missing


@pytest.mark.parametrize("count", [1, 2, 300])
def test_predictions_are_those_of_the_run(run: Run, scorer: OnnxScorer, count: int):
    raw = NEW[:count]
    found, expected = scorer.predict(raw.to_dict("list"), gates=True), run.predict(raw, gates=True)
    assert list(found) == list(expected)
    assert found["plan_class"].tolist() == expected["plan_class"].tolist()
    for name in set(found) - {"plan_class"}:
        assert_allclose(found[name], expected[name], rtol=2e-6, atol=1e-6, err_msg=name)
    assert not [name for name in scorer.predict(raw.to_dict("list")) if "gate" in name]


def test_rows_are_scored_in_blocks(scorer: OnnxScorer, monkeypatch: pytest.MonkeyPatch):
    rows = NEW.to_dict("records")
    whole = scorer.predict(rows)
    monkeypatch.setattr(onnx_scorer, "ROWS_PER_PASS", 64)
    for name, values in scorer.predict(rows).items():
        if values.dtype == object:
            assert values.tolist() == whole[name].tolist()
        else:
            assert_allclose(values, whole[name], rtol=1e-6, err_msg=name)


def test_rows_may_be_lists_arrays_frames_or_mappings(run: Run, scorer: OnnxScorer):
    assert_same_codes(run, scorer, NEW, NEW)
    assert_same_codes(run, scorer, NEW, NEW.to_dict("records"))
    assert_same_codes(run, scorer, NEW, {name: values.to_list() for name, values in NEW.items()})
    assert_same_codes(run, scorer, NEW, {name: values.to_numpy() for name, values in NEW.items()})
    assert_same_codes(run, scorer, NEW, {**NEW[NEW.columns[::-1]], "other": ["ignored"]})
    dtypes = {"city": "category", "code": "Int64", "flag": "boolean", "user": "string", "amount": "Float64"}
    assert_same_codes(run, scorer, NEW, NEW.astype(dtypes))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("city", ["Bonn", "Oslo", None, "", "bonn", np.nan]),
        ("city", [None, None]),
        ("city", [b"Bonn", "Bonn", 3.0]),
        ("code", ["-2", "3", "03", "4.0", " 1"]),
        ("code", [1.0, 2.5, np.nan, -2.0]),
        ("code", np.array([0, 4, 9], np.uint8)),
        ("half", [0, 1, 2, None]),
        ("half", np.float32([0.5, 1, 0.1])),
        ("half", ["0.5", "1", "1.0"]),
        ("half", [np.inf, -0.0, 1e22]),
        ("flag", [True, False, None]),
        ("flag", ["true", "false"]),
        ("flag", ["TRUE"]),
        ("flag", [0, 1, 1]),
        ("flag", ["0", None, "1"]),
        ("flag", ["true", "perhaps"]),
        ("flag", ["True", "perhaps", "false"]),
        ("flag", ["TRUE", 0, "perhaps", 1.0, None]),
        ("bit", [True, False]),
        ("bit", ["false", "true"]),
        ("bit", [1, 2, 0]),
        ("user", ["u1", "u1000", None]),
        ("query", ["größe 1", "other", None, "größe 1"]),
        ("query", [1, 2.0, None]),
        ("tags", ["a|b", "b||a", "", None, " a | d ", "x|y|z|w|v|a", "a|a|b", "|"]),
        ("tags", [["a", "b"], [], None, ["x", "c ", None]]),
        ("ids", [[1, 2, 3], [], None, [1, 1, 2], [999, 1, 2]]),
        ("ids", [["1", " 2"], ("7",), np.array(["3", "4"])]),
        ("ids", [[1.0, None], np.array([2, 3])]),
        ("joined", ["1970-01-01", "2001-02-03T04:05:06.789", " 20010203 ", None]),
        ("joined", ["2001-02-03 04:05:06+05:30", "2001-02-03T04:05Z"]),
        ("joined", [datetime.date(1969, 12, 31), datetime.datetime(1968, 2, 29, 23, 59, 59, 999999), None]),
        ("joined", [datetime.datetime(2001, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))]),
        ("joined", np.array(["2001-01-01T05:06:07.999999999", "NaT", "1969-12-31T23:59:59.5"], "M8[ns]")),
        ("joined", np.array(["2001-01-01", "1900-01-01"], "M8[s]")),
        ("joined", [pd.Timestamp("2001-01-01", tz="Asia/Tokyo"), pd.NaT]),
        ("joined", [None, None]),
        ("seen", [1.6e9 + 0.7, np.nan, -0.5, 0.0]),
        ("seen", [99_999_999_999, 0]),
        ("seen", np.array([5, None], object)),
        ("seen", ["1600000000", " 5.5 ", None]),
        ("seen", ["1600000000", "", " ", "nan"]),
        ("seen", ["", None]),
        ("seen", ["2020-01-01T01:00", "2021-12-31"]),
        ("amount", ["1.5", " 2 ", "", None, "1e3", "-.5", "nan"]),
        ("amount", ["TRUE", "false", "+2"]),
        ("amount", [1, None, 2.5]),
        ("amount", [True, False]),
        ("amount", np.array([1, 2], np.int8)),
        ("amount", np.float16([1.1, 2.2])),
        ("large", [10**12 + 1, 10**12 + 2.5, None]),
        ("large", ["1000000000001", "5"]),
        ("large", np.float32([1e12, 0])),
        ("whole", [2**60 + 2**36 + 1, 2**53 + 1, -(2**62) - 2**38 - 1]),
        ("whole", [2**63, 2**70]),
        ("empty", [1.0, None]),
    ],
)
def test_columns_are_encoded_as_the_run_does(run: Run, scorer: OnnxScorer, column: str, values: list):
    raw = NEW[: len(values)].assign(**{column: pd.Series(values)})
    lists = NEW[: len(values)].to_dict("list")
    assert_same_codes(run, scorer, raw, lists | {column: values})
    dicts = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    assert_same_codes(run, scorer, raw, [row | {column: v} for row, v in zip(dicts, values, strict=True)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amount": ["1", "x", "2"]}, "column amount, row 1: must be a number, is 'x'"),
        ({"amount": [1, 2, "1_000"]}, "column amount, row 2: must be a number, is '1_000'"),
        ({"amount": [[1], [2], [3]]}, r"column amount, row 0: must be a number, is '\[1\]'"),
        ({"amount": [1, np.inf, 2]}, "column amount, row 1: must be a finite number in the range of float32"),
        ({"amount": [1, 2, 10**400]}, "column amount, row 2: must be a number"),
        ({"amount": np.ones((3, 2))}, r"column amount: must be a list or an array \[N\], has the shape"),
        ({"amount": [1, 2]}, "columns must have the same length; city has 3 values, amount has 2"),
        ({"city": "Bonn"}, r"column city: must be a list or an array \[N\], has the shape \(\)"),
        ({"city": [["Bonn"]] * 3}, r"column city: must hold text, holds \['Bonn'\]"),
        ({"ids": ["1", "2", "3"]}, "column ids: must hold lists of levels, holds '1'"),
        ({"joined": ["2020-01-01", "31/12/20", None]}, "column joined, row 1: must be a date: text such as"),
        ({"joined": ["2020-01-01", 5, None]}, "column joined, row 1: must be a date"),
        ({"joined": [5, 1.6e9, None]}, "column joined, row 0: must be a date: text such as"),
        ({"seen": ["2020-01-01", 5, None]}, "column seen, row 1: must be a date: text such as"),
        (
            {"seen": [5, 1_700_000_000_123, None]},
            "column seen, row 1: must be a date, or a Unix time in s as in the training rows, is '17",
        ),
        ({"joined": [True, False, None]}, "column joined, row 0: must be a date"),
    ],
)
def test_values_that_cannot_be_encoded(scorer: OnnxScorer, changes: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        scorer.predict(NEW[:3].to_dict("list") | changes)


def test_columns_that_are_missing(scorer: OnnxScorer):
    with pytest.raises(ValueError, match=r"^column large is missing; the columns are city, code"):
        scorer.encode(NEW.drop(columns="large"))
    rows = NEW[:3].to_dict("records")
    del rows[1]["large"]
    with pytest.raises(ValueError, match=r"^row 1: column large is missing; the columns are city, code"):
        scorer.encode(rows)
    with pytest.raises(ValueError, match=r"^there are no rows to score$"):
        scorer.predict([])


def test_a_file_without_a_schema(run: Run):
    model = onnx.load(run.folder / "network.onnx")
    del model.metadata_props[:]
    onnx.save(model, "other.onnx")
    with pytest.raises(ValueError, match=r"^other.onnx: must be a file that mmoe.export wrote"):
        OnnxScorer(Path("other.onnx"))


def test_a_copy_of_the_module_needs_numpy_and_onnxruntime_alone(run: Run):
    Path("copied.py").write_text(Path(onnx_scorer.__file__).read_text("utf-8"), "utf-8")
    raw = NEW[:20].assign(joined=NEW["joined"].dt.strftime("%Y-%m-%dT%H:%M:%S"))
    Path("rows.json").write_text(raw.to_json(orient="records"), "utf-8")
    code = (
        "import json, sys\n"
        "for name in ('mmoe', 'torch', 'pandas', 'pyarrow', 'scipy', 'pytorch_lightning'):\n"
        "    sys.modules[name] = None\n"
        "from copied import OnnxScorer\n"
        "scores = OnnxScorer(sys.argv[1]).predict(json.load(open('rows.json', encoding='utf-8')))\n"
        "print(json.dumps({name: values.tolist() for name, values in scores.items()}))"
    )
    command = [sys.executable, "-c", code, str(run.folder / "network.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, expected = json.loads(done.stdout), run.predict(raw)
    assert list(found) == list(expected)
    assert found.pop("plan_class") == expected.pop("plan_class").tolist()
    for name, values in found.items():
        assert_allclose(values, expected[name], rtol=2e-6, atol=1e-6, err_msg=name)
