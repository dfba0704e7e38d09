"""`mmoe.describe`: kinds of columns and tasks from values, columns that give a label away, and the YAML."""

import datetime
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from pyarrow import feather, parquet

from mmoe.data.column_guess import Guess, guess
from mmoe.data.column_values import ColumnValues, values_of
from mmoe.data.csv_guess import guess_options
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import CSV, file_kind, find_files
from mmoe.data.draft import batch_size, to_yaml
from mmoe.data.frames import table_of_frame
from mmoe.data.suspects import auroc, find_suspects
from mmoe.data.table_data import TableData
from mmoe.data.table_files import read_table
from mmoe.data.task_guess import guess_task, guess_tasks
from mmoe.describe import describe, name_input, show
from mmoe.errors import UserError

N = 1000
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="session")
def tables_dir() -> Path:
    """Real tables, where the machine has them."""
    folder = os.environ.get("MMOE_TABLES_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MMOE_TABLES_DIR is not set: no real tables here")
    return Path(folder).resolve()


def values(name: str, data: Any) -> ColumnValues:
    array = data if isinstance(data, pa.Array) else table_of_frame(pd.DataFrame({name: data}))[name]
    return values_of(name, array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]))


def kind_of(name: str, data: Any, is_csv: bool = True) -> Guess:
    return guess(values(name, data), is_csv)


# Kinds of columns


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("x", RANDOM.normal(size=N), "numeric"),
        ("x", np.where(RANDOM.random(N) < 0.1, np.nan, RANDOM.normal(size=N)), "numeric"),
        ("x", RANDOM.integers(0, 500, N), "numeric"),
        ("x", RANDOM.integers(0, 9, N), "categorical"),  # codes as small integers
        ("x", RANDOM.integers(0, 9, N)[:20], "numeric"),  # too few rows to tell
        ("age", RANDOM.integers(18, 30, N), "numeric"),
        ("item_id", RANDOM.integers(0, 500, N), "categorical"),
        ("movieId", RANDOM.integers(0, 500, N), "categorical"),
        ("zip", RANDOM.integers(0, 500, N), "categorical"),
        ("paid", RANDOM.integers(0, 500, N), "numeric"),  # not an id
        ("x", RANDOM.random(N) < 0.5, "categorical"),
        ("x", [f"{n:03}" for n in RANDOM.integers(0, 99, N)], "categorical"),
        ("x", ["a", None] * (N // 2), "categorical"),  # one level, which may be missing
        ("x", [f"2020-{1 + n % 12:02}-{1 + n % 28:02}" for n in range(N)], "datetime"),
        ("x", [f"{1 + n % 12}/{1 + n % 28}/2020 10:{n % 60:02}" for n in range(N)], "datetime"),
        ("x", [f"{1 + n % 12}.{1 + n % 28}.{n % 7}" for n in range(N)], "categorical"),  # versions
        ("x", pa.array([datetime.date(2020, 1, 1 + n % 28) for n in range(N)]), "datetime"),
        ("x", pd.date_range("2020-01-01", periods=N), "datetime"),
        ("timestamp", RANDOM.integers(9e8, 15e8, N), "datetime"),
        ("x", RANDOM.integers(9e8, 15e8, N), "numeric"),  # not named like a time
        ("x", [["a", "b"], [], ["c"]] * 100, "multi"),
        ("x", [b"red", "blü".encode()] * 100, "categorical"),  # text that is stored as bytes
    ],
)
def test_the_kind_follows_from_the_values(name: str, data: Any, expected: str):
    found = kind_of(name, data)
    assert (found.kind, found.reason) == (expected, "")
    assert found.to_plain() == expected


def test_levels_within_a_field():
    tags = ["red", "green", "blue", "white", "black"]
    texts = ["|".join(RANDOM.choice(tags, RANDOM.integers(1, 4), replace=False)) for _ in range(N)]
    assert kind_of("x", texts).to_plain() == {"kind": "multi", "separator": "|"}
    assert kind_of("x", [text.replace("|", ", ") for text in texts]).to_plain()["separator"] == ","
    # Levels that contain a comma are not lists of levels.
    assert (
        kind_of("x", ["$1,000 - 2,000", "below $1,000", "above $2,000", "none"] * 100).kind == "categorical"
    )
    assert kind_of("x", [f"{n},{n % 7}" for n in range(N)]).kind == "categorical"


def test_long_lists_of_many_levels():
    texts = [",".join(f"{n % 7}:{part}" for part in RANDOM.integers(0, 100, 40)) for n in range(200)]
    assert kind_of("x", texts).to_plain() == {"kind": "multi", "separator": ",", "max_values": 40}
    assert kind_of("x", [list(range(50)), [1]] * 9).to_plain() == {"kind": "multi", "max_values": 50}
    sentences = [f"It is {n}, and that is {n * 3}, which is more" for n in range(200)]
    assert kind_of("x", sentences).kind == "categorical"


def test_a_huge_vocabulary_is_hashed():
    count = 1_000_001
    found = kind_of("user_id", np.arange(2 * count) // 2 * 7)
    assert found.to_plain() == {"kind": "categorical", "encoding": "hash", "buckets": 100_000, "size": 16}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([None] * N, "empty"),
        ([5.0] * N, "constant"),
        (["a"] * N, "constant"),
        (np.arange(N) + 7, "row numbers"),
        (RANDOM.permutation(N), "row numbers"),
        ([f"id-{n * 17}" for n in range(N)], "a level for each row"),
        ([f"id-{n // 20 if n < 20 else n}" for n in range(N)], "nearly a level for each row"),
        (pa.array([{"a": 1}] * 5 + [{"a": 2}] * 5), "holds struct<a: int64>"),
        ([b"\xff", b"ab"] * N, "holds bytes that are not UTF-8 text"),
        (pd.Categorical([b"\xff", b"ab"] * N), "holds bytes that are not UTF-8 text"),
    ],
)
def test_columns_without_use_are_left_out(data: Any, reason: str):
    assert kind_of("x", data).reason == reason


def test_a_column_that_is_left_out_may_hold_numbers_with_marks():
    found = kind_of("x", [f"{n}.{n % 1000:03},5" for n in range(1, 900)])
    assert found.reason == "a level for each row; numbers if csv has decimal: ',' and thousands: '.'"
    assert kind_of("x", [f"v{n},5" for n in range(50)] * 10).remarks == []


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        ("€ {:,.2f}", "€"), ("${}", "$"), ("EUR {}", "EUR"), ("-{} €", "€"), ("{} km", "km"), ("{}%", "%"),
        ("{} minutes", "minutes"), ("{}-", ""),
        ("v{}", ""), ("{}", ""), ("A {}", ""), ("{}-{}", ""),
    ],
)  # fmt: skip
def test_numbers_with_a_unit_get_a_remark(form: str, unit: str):
    texts = [form.format(n * 1.5, n) for n in range(1, 60)] * 9
    remark = f"numbers with {unit!r}; remove it from the file for a column of numbers"
    assert (remark in kind_of("x", texts).remarks) == bool(unit)
    assert (remark in guess_task("x", values("x", texts)).remarks) == bool(unit)
    found = kind_of("x", texts[:59])
    assert found.reason in ("", f"a level for each row; {remark}" if unit else "a level for each row")
    assert remark not in kind_of("x", [*texts, form.format(1, 2) + " more"]).remarks


def test_a_task_with_another_name_than_its_column_gets_a_remark():
    labels = values("Will buy?", [0, 1] * 50)
    (task,) = guess_tasks(["Will buy?"], {"Will buy?": labels})
    assert task.name == "Will_buy"
    assert (
        task.remarks[-1]
        == "named Will_buy, because configurations need names of letters, digits and underscores"
    )


def test_numbers_with_thousands_and_an_odd_spelling():
    numbers = [f"{i % 9 + 1}.{i * 7 % 1000:03d},{i % 100:02d}" for i in range(300)]
    hint = "numbers if csv has decimal: ',' and thousands: '.'"
    label = guess_task("y", values_of("y", pa.chunked_array([numbers])), is_csv=True)
    assert hint in label.remarks
    others = "numbers and 'n/a': add to csv.missing for a numeric column"
    column = guess(values_of("x", pa.chunked_array([[*numbers, "n/a"]])), is_csv=True)
    assert column.reason == f"a level for each row; {others}"
    frame = guess(values_of("x", pa.chunked_array([[*numbers, "n/a"]])))
    assert frame.reason.endswith("; numbers and 'n/a': replace by None and set the kind numeric")


def test_dates_with_an_odd_spelling():
    dates = [f"2025-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(200)]
    one = guess(values_of("day", pa.chunked_array([[*dates, "k.A.", "?"]])), is_csv=True)
    hint = "dates and 'k.A.', '?': add to csv.missing for a column of dates"
    assert one.remarks == [hint]
    assert guess(values_of("day", pa.chunked_array([dates]))).kind == "datetime"
    each = pd.date_range("2000-01-01", periods=200).strftime("%d.%m.%Y")
    assert guess(values_of("day", pa.chunked_array([[*each, "k.A."]])), True).reason.endswith(
        "; dates and 'k.A.': add to csv.missing for a column of dates"
    )
    many = guess(values_of("day", pa.chunked_array([[*dates, *"abcd"]])), True)
    assert not many.remarks


def test_numbers_with_an_odd_spelling_are_no_lists():
    data = [f"{n % 40},{n % 7}" for n in range(300)] + ["-"]
    found = kind_of("x", data)
    remark = "numbers and '-': add to csv.missing for a numeric column"
    assert (found.kind, found.remarks) == ("categorical", [remark])
    assert remark in guess_task("x", values("x", data), is_csv=True).remarks
    advice = "numbers and '-': replace by None and set the kind numeric"
    assert advice in guess_task("x", values("x", data)).remarks


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (RANDOM.integers(-1, 50, N), "-1 may mean unknown"),
        (
            [str(n) for n in range(50)] * 10 + ["n/a"],
            "numbers and 'n/a': replace by None and set the kind numeric",
        ),
        ([f"{n},5" for n in range(50)] * 10, "numbers as text, with decimal: ','"),
    ],
)
def test_only_columns_of_csv_files_are_advised_to_set_csv_options(data: Any, remark: str):
    assert kind_of("x", data, is_csv=False).remarks == [remark]


@pytest.mark.parametrize(
    ("name", "data", "remark"),
    [
        ("x", RANDOM.integers(-1, 50, N), '-1 may mean unknown; then set csv.missing=["","?",NA,-1]'),
        ("x", [str(n) for n in range(50)] * 10 + ["n/a"], "numbers and 'n/a'"),
        ("x", [f"0{n}" for n in range(50)] * 10, "numbers as text"),
        ("x", [f"1.{n:03},5" for n in range(50)] * 10, "numbers if csv has decimal: ',' and thousands: '.'"),
        (
            "x",
            [f"{n:,}.25" for n in range(0, 50000, 999)] * 9,
            "numbers if csv has decimal: '.' and thousands: ','",
        ),
        ("x", [f"{n},5" for n in range(50)] * 10, "numbers if csv has decimal: ','"),
        ("x", ["true", "True", "false"] * 100, "several spellings"),
        ("exposure", RANDOM.random(N), "the weight of a row?"),
        ("date", [20200101 + n % 28 for n in range(N)], "YYYYMMDD"),
        ("x", [f"{1 + n % 28}.{1 + n % 12}.2020" for n in range(N)], "the day stands before the month"),
        (
            "x",
            [f"{1 + n % 12}/{1 + n % 12}/2020" for n in range(N)],
            "read with the month first; set day_first",
        ),
        ("x", RANDOM.integers(2**30, 2**31, N), "integers more than 2^24 apart"),
        ("x", [1.5, np.inf] * 100, "infinite"),
    ],
)
def test_remarks(name: str, data: Any, remark: str):
    (found,) = kind_of(name, data).remarks
    assert remark in found


# Tasks


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([0] * 90 + [1] * 10, {"positive": [1]}),
        ([0] * 10 + [1] * 90, {"positive": [1]}),
        ([0.0] * 90 + [1.0] * 10, {"positive": [1]}),
        ([1] * 90 + [2] * 10, {"positive": [1]}),
        (["no"] * 30 + ["yes"] * 70, {"positive": ["yes"]}),
        (["Low"] * 30 + ["High"] * 70, {"positive": ["High"]}),
        (["a"] * 30 + ["b"] * 70, {"positive": ["a"]}),  # the rarer one
        ([True] * 30 + [False] * 70, {"positive": ["True"]}),
        (["a", "b", "c"] * 10, {"kind": "multiclass"}),
        ([3, 4, 5] * 10, {"kind": "multiclass"}),
        ([0] * 50 + [1] * 20 + [2] * 5 + [7], {"kind": "count"}),
        (list(range(3, 20)) * 10, {"kind": "regression"}),
        ([10, 20, 90] * 10, {"kind": "multiclass"}),
        (RANDOM.normal(size=N), {"kind": "regression"}),
        ([0.5, 1, 1.5, 2] * 50, {"kind": "regression"}),
    ],
)
def test_the_kind_of_a_task_follows_from_its_label(data: Any, expected: dict[str, Any]):
    (task,) = guess_tasks(["y"], {"y": values("y", data)})
    assert task.to_plain() == {"column": "y"} | expected


def test_task_names_are_words_and_differ():
    columns = {name: values(name, [0, 1]) for name in ("Bought it?", "Bought it!", "101")}
    assert [task.name for task in guess_tasks(list(columns), columns)] == ["Bought_it", "Bought_it_", "101"]


def test_a_funnel_is_remarked_on():
    visit = np.arange(N) % 5 == 0
    buy = visit & (np.arange(N) % 3 == 0)
    spend = np.where(buy, RANDOM.random(N), 0)
    columns = {
        name: values(name, data * 1) for name, data in (("visit", visit), ("buy", buy), ("spend", spend))
    }
    tasks = guess_tasks(list(columns), columns)
    remarks = {task.name: " ".join(task.remarks) for task in tasks}
    assert "where" not in remarks["visit"]
    assert "where: visit" in remarks["buy"]
    assert "0 in all negative rows of buy; `where: buy`" in remarks["spend"]
    columns["spend"] = values("spend", np.where(buy, spend, np.nan))
    (found,) = (task for task in guess_tasks(list(columns), columns) if task.name == "spend")
    assert any(remark.startswith("missing in all negative rows of buy") for remark in found.remarks)
    assert not any("where" in task.to_plain() for task in tasks)

    # A level that `where: visit` does not know is written out.
    columns["visit"] = values("visit", np.where(visit, "came", "stayed away"))
    tasks = guess_tasks(list(columns), columns)
    remarks = {task.name: " ".join(task.remarks) for task in tasks}
    assert "`where: {visit: [came]}` would leave these rows out" in remarks["buy"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 1], "must have at least two values to learn; has '1' in every row"),
        ([None, None], "has no value"),
        ([["a"], ["b"]], "must have one value in a row"),
        ([b"\xff", b"ab"], "must hold numbers or text, holds bytes that are not UTF-8 text"),
        (pd.to_timedelta([1, 2], "h"), r"must hold numbers or text, holds duration"),
    ],
)
def test_a_column_that_cannot_be_a_label(data: Any, message: str):
    with pytest.raises(UserError, match=message):
        guess_tasks(["y"], {"y": values("y", data)})


# Columns that give a label away

CLICK = RANDOM.random(N) < 0.2
AMOUNT = RANDOM.random(N).round(3)
OTHER = RANDOM.random(N).round(3)


@pytest.mark.parametrize(
    ("label", "columns", "expected"),
    [
        (CLICK * 1, {"x": CLICK * 1}, {"x": "equals y"}),
        (CLICK * 1, {"x": np.where(CLICK, "won", "lost")}, {"x": "has one level for each value of y"}),
        (CLICK * 1, {"x": CLICK * (1 + OTHER)}, {"x": "alone predicts y with an AUROC of 1.000"}),
        (
            CLICK * 1,
            {"x": CLICK * 10 + RANDOM.integers(0, 10, N)},
            {"x": "alone predicts y with an AUROC of 1.000"},
        ),
        (CLICK * 1, {"x": np.where(CLICK, np.nan, OTHER)}, {"x": "alone predicts y with an AUROC of 1.000"}),
        (CLICK * 1, {"x": CLICK * (OTHER < 0.3) * 1}, {"x": "y is positive in all "}),
        (CLICK * (OTHER < 0.1) * 1, {"x": CLICK * (OTHER < 0.2) * 1}, {"x": ""}),
        (
            np.array(["a", "b", "c"])[np.arange(N) % 3],
            {"x": np.arange(N) % 3 * 2},
            {"x": "has one level for each"},
        ),
        (AMOUNT, {"x": AMOUNT * 3 - 1}, {"x": "has a correlation of 1.0"}),
        (AMOUNT, {"x": np.exp(5 * AMOUNT)}, {"x": "has a correlation of 1.0"}),
        (
            AMOUNT + OTHER,
            {"a": AMOUNT, "b": OTHER, "c": RANDOM.random(N)},
            {"a": "y is a weighted", "b": "y is"},
        ),
        (
            AMOUNT * OTHER,
            {"a": AMOUNT, "b": OTHER, "c": RANDOM.random(N)},
            {"a": "y is a x b", "b": "y is a x b"},
        ),
        (AMOUNT / (1 + OTHER), {"a": AMOUNT, "b": 1 + OTHER}, {"a": "y is a / b", "b": "y is a / b"}),
        (AMOUNT * CLICK, {"x": CLICK * 1}, {"x": "alone predicts whether y is other than 0"}),
        # Not suspects: noise, an id that occurs once, rare levels, a good but imperfect predictor.
        (CLICK * 1, {"x": RANDOM.random(N), "z": [f"id{n}" for n in range(N)]}, {}),
        (CLICK * 1, {"x": RANDOM.integers(0, N // 2, N)}, {}),
        (CLICK * 1, {"x": CLICK + RANDOM.normal(size=N)}, {}),
        (
            AMOUNT,
            {"x": AMOUNT + 0.1 * OTHER, "z": OTHER},
            {"x": "y is a weighted sum", "z": "y is a weighted"},
        ),
        (AMOUNT, {"x": AMOUNT + 0.1 * RANDOM.normal(size=N), "z": OTHER}, {}),
    ],
)
def test_suspects(label: Any, columns: dict[str, Any], expected: dict[str, str]):
    tasks = guess_tasks(["y"], {"y": values("y", label)})
    found = find_suspects(tasks, [values(name, data) for name, data in columns.items()])
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert found[name].startswith(reason)


def test_a_missing_label_does_not_hide_a_suspect():
    label = np.where(AMOUNT < 0.3, np.nan, CLICK * 1.0)
    tasks = guess_tasks(["y"], {"y": values("y", label)})
    assert "x" in find_suspects(tasks, [values("x", CLICK * 1)])


def test_auroc_equals_the_share_of_ordered_pairs():
    scores, positive = RANDOM.integers(0, 5, 60), RANDOM.random(60) < 0.4
    pairs = scores[positive][:, None] - scores[~positive]
    assert auroc(scores, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


# How text is written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,x\n2,y\n", (",", True, ".")),
        ("a\tb\n1\tx, y\n2\ty, z\n", ("\t", True, ".")),
        ("a;b\n1,5;x\n2,5;y\n", (";", True, ",")),
        ("a|b\n1.5|x\n2|y\n", ("|", True, ".")),
        ("1\t2\n3\t4\n", ("\t", False, ".")),
        ("39,Private,77516\n50,Self,83311\n", (",", False, ".")),
        ("click,101,205\n0,1,5\n1,2,6\n", (",", True, ".")),  # names that are numbers
        ("a,b\nx,y\n", (",", True, ".")),
        ("x\n1\n2\n", (",", True, ".")),
    ],
)
def test_the_layout_is_guessed(text: str, expected: tuple[str, bool, str]):
    Path("a.csv").write_text(text)
    found = guess_options("a.csv", {"delimiter": None, "header": None})
    assert (found.delimiter, found.header, found.decimal) == expected


def test_given_options_are_kept():
    Path("a.csv").write_text("1,5\n3,4\n")
    assert guess_options("a.csv", {"header": True}).header
    assert guess_options("a.csv", {"delimiter": ";"}).delimiter == ";"
    assert guess_options("a.csv", {"names": ["a", "b"]}).names == ("a", "b")
    with pytest.raises(UserError, match="decimal"):
        guess_options("a.csv", {"decimal": "x"})


# The command and the YAML


def write_table(rows: int = 600) -> None:
    click = RANDOM.random(rows) < 0.2
    frame = pd.DataFrame(
        {
            "row": np.arange(rows),
            "clicked": click * 1,
            "spend [EUR]": np.where(click, RANDOM.random(rows), np.nan),
            "revenue": click * RANDOM.random(rows),
            "age": np.where(RANDOM.random(rows) < 0.1, np.nan, RANDOM.integers(18, 70, rows)),
            "user id": RANDOM.integers(0, 50, rows),
            "tags": RANDOM.choice(["a", "b", "a|b", "b|a", "a|b|c", "c", "b|c", "c|a"], rows),
            "101": RANDOM.choice(["no", "yes"], rows),
            "joined": [f"2020-01-{1 + n % 28:02}" for n in range(rows)],
            "nothing": None,
        }
    )
    Path("data").mkdir(exist_ok=True)
    frame.to_csv("data/train.csv", index=False)
    frame.to_parquet("data/train.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_complete_configuration_is_drafted(command: Callable, suffix: str):
    write_table()
    source = f"data/train.{suffix}"
    done = command("describe")(source, "tasks=[clicked,'spend [EUR]']", "out=conf/data/mine.yaml")
    assert done.code == 0, done.err
    assert "python -m mmoe.train --config-dir conf data=mine" in done.out
    text = Path("conf/data/mine.yaml").read_text()
    raw = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    assert raw["columns"] == {
        "age": "numeric",
        "user id": "categorical",
        "tags": {"kind": "multi", "separator": "|"},
        "101": "categorical",
        "joined": "datetime",
    }
    assert raw["tasks"] == {
        "clicked": {"column": "clicked", "positive": [1]},
        "spend_EUR": {"column": "spend [EUR]", "kind": "regression"},
    }
    assert (raw["train"], raw["main_task"], raw["weight"]) == (source, "clicked", None)
    assert (raw["validation"], raw["test"]) == ({"fraction": 0.1}, {"fraction": 0.2})
    assert raw["_target_"] == "mmoe.data.table_data.TableData"
    assert raw["seed"] == "${seed}"
    assert raw.get("csv", {}).get("delimiter") == ("," if suffix == "csv" else None)
    assert "# row: numeric                          # left out: row numbers" in text
    assert "# nothing: " in text
    assert "left out: gives a label away: alone predicts clicked" in text
    assert "{last: 0.1, by: joined}; {fraction: 0.1, by: user id}" in text
    lines = text.splitlines()
    assert all(len(line) == 0 or line == line.rstrip() for line in lines)


def test_the_printed_table_names_every_column(command: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    write_table()
    done = command("describe")("data/train.csv")
    assert done.code == 0, done.err
    for name in ("row", "clicked", "spend [EUR]", "user id", "joined", "nothing"):
        assert f"│ {name} " in done.out
    assert "left out" in done.out
    assert "multi, separator |" in done.out
    assert not Path("conf").exists()


def test_remarks_stand_below_a_narrow_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    write_table()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show(describe("data/train.csv", [], {"csv": {}, "test": None}))
    table, _, below = capsys.readouterr().out.partition("┘")
    assert "remark" not in table
    assert "\nrow: row numbers\n" in below


def test_several_files_and_a_test_file(command: Callable):
    write_table()
    Path("data/more.csv").write_text(Path("data/train.csv").read_text())
    run = command("describe")
    done = run("data/train.csv", "data/more.csv", "test=data/more.csv", "tasks=clicked", "out=mine.yaml")
    assert done.code == 0, done.err
    raw = OmegaConf.load("mine.yaml")
    assert raw.train == ["data/train.csv", "data/more.csv"]
    assert raw.test == "data/more.csv"
    assert run("data/*.csv", "tasks=clicked", "main_task=clicked", "out=glob.yaml").code == 0
    assert run("input=[data/train.csv]", "tasks=clicked", "out=list.yaml").code == 0
    assert Path("list.yaml").read_text().startswith("# data/train.csv: ")
    assert OmegaConf.load("glob.yaml").train == "data/*.csv"


def test_blank_text_is_missing_as_in_training():
    tags = kind_of("tags", ["", " ", *(f"{a}|{b}|{c}" for a in "abcde" for b in "fghij" for c in "klm")] * 4)
    assert (tags.kind, tags.values.num_missing) == ("multi", 8)


def test_whole_numbers_that_are_a_regression_may_be_counts():
    values = values_of("visits", pa.chunked_array([list(range(15)) * 10]))
    (task,) = guess_tasks(["visits"], {"visits": values})
    assert (task.kind, task.remarks) == ("regression", ["0 to 14", "kind: count if it counts events"])


def test_a_file_without_a_header(command: Callable):
    Path("a.txt").write_text("".join(f"{n * 7 % 50}\t{n % 3}\t{n % 2}\n" for n in range(100)))
    unnamed = command("describe")("a.txt", "tasks=[like]")
    assert (unnamed.code, unnamed.err.count("\n")) == (2, 1)
    assert "a.txt: has no header, so it has no column 'like'; csv.names=[...] names" in unnamed.err
    assert command("describe")("a.txt", "tasks=[column_3]").code == 0
    arguments = [
        "a.txt",
        "csv.names=[user_id,city,like]",
        "csv.missing=['',-1]",
        "tasks=[like]",
        "out=a.yaml",
    ]
    assert command("describe")(*arguments).code == 0
    raw = OmegaConf.load("a.yaml")
    assert raw.csv.names == ["user_id", "city", "like"]
    assert (raw.csv.delimiter, raw.csv.header, raw.csv.missing) == ("\t", False, ["", "-1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["empty.csv"], "empty.csv: is empty"),
        (["header.csv"], "header.csv: must have at least one row; has none"),
        (["twice.csv"], "twice.csv: two columns are named 'a'"),
        (
            ["data/train.csv", "tasks=[click]", "out=a.yaml"],
            "must have a column 'click'; the nearest is 'clicked'",
        ),
        (["data/train.csv", "tasks=[nothing]", "out=a.yaml"], "must have at least two values to learn"),
        (["data/train.csv", "tasks=[clicked,clicked]"], "must name each column once"),
        (["data/train.csv", "out=a.yaml"], "tasks=[]: must name the columns that hold labels"),
        (["data/train.csv", "tasks=[clicked]", "out=a.txt"], "out=a.txt: must end with .yaml"),
        (
            ["data/train.csv", "tasks=[clicked]", "out=old.yaml"],
            "out=old.yaml: must not exist yet; overwrite=true",
        ),
        (["data/train.csv", "tasks=[clicked]", "main_task=x"], "main_task=x: must be one of clicked"),
        (["data/train.csv", "main_task=x"], "main_task=x: needs tasks, and tasks=[] names none"),
        (["data/train.csv", "tasks=1.5"], "column '1.5'"),
        (["data/train.csv", "csv.header=no"], "csv.header='no': must be true or false"),
        (["data/train.csv", "tasks=[clicked]", "test=few.csv"], "few.csv: must have the columns 'age'"),
        (["data/train.csv", "csv.decimal=x"], "csv.decimal='x': must be a point or a comma"),
        (["few.csv", "tasks=[clicked]", "out=a.yaml"], "no column is left as an input"),
        ([], "input=...: must be given"),
    ],
)
def test_a_mistake_is_one_line(command: Callable, arguments: list[str], message: str):
    write_table(100)
    Path("empty.csv").touch()
    Path("header.csv").write_text("a,b,c\n")
    Path("twice.csv").write_text("a,a,c\n" + "1,2,3\n" * 9)
    Path("old.yaml").touch()
    Path("few.csv").write_text("clicked\n0\n1\n")
    done = command("describe")(*arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not Path("a.yaml").exists()


def test_a_file_in_latin_1_is_described(command: Callable):
    Path("train.csv").write_bytes("city,clicked\nMünchen,1\nKöln,0\n".encode("latin-1") * 20)
    done = command("describe")("train.csv", "tasks=[clicked]")
    assert (done.code, done.err) == (0, "")
    assert "München" in done.out


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2)], ids=str)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_bytes_are_left_out_unless_they_are_text(command: Callable, kind: pa.DataType, suffix: str):
    count = 200
    rows = pa.table(
        {
            "picture": pa.array([b"\xff\x00", b"\x89P"] * (count // 2), kind),
            "colour": pa.array([b"re", b"bl", None, b"re"] * (count // 4), kind),
            "x": RANDOM.random(count),
            "clicked": RANDOM.integers(0, 2, count),
        }
    )
    path = f"train.{suffix}"
    (parquet.write_table if suffix == "parquet" else feather.write_feather)(rows, path)
    done = command("describe")(path, "tasks=[clicked]", "out=conf/data/mine.yaml")
    assert (done.code, done.err) == (0, "")
    text = Path("conf/data/mine.yaml").read_text()
    assert "# picture: categorical" in text
    assert "left out: holds bytes that are not UTF-8 text" in text
    assert set(OmegaConf.create(text).columns) == {"colour", "x"}
    tasks = {"clicked": {"column": "clicked"}}
    for columns in ({"colour": "categorical", "x": "numeric"}, None):
        data = TableData(train=path, test={"fraction": 0.2}, columns=columns, tasks=tasks)
        assert set(data.dataset.schema.input_columns) == {"colour", "x"}


def test_an_output_is_replaced_on_demand(command: Callable):
    write_table(100)
    Path("old.yaml").touch()
    assert (
        command("describe")("data/train.csv", "tasks=[clicked]", "out=old.yaml", "overwrite=true").code == 0
    )
    assert OmegaConf.load("old.yaml").main_task == "clicked"


@pytest.mark.parametrize("out", ["my conf/data/mine.yaml", "conf/data/my table.yaml", "conf/data/t.1.yaml"])
def test_the_command_that_trains_can_be_pasted(command: Callable, train: Callable, out: str):
    write_table(100)
    done = command("describe")("data/train.csv", "tasks=[clicked]", f"out={out}")
    words = shlex.split(done.out.partition("to train: ")[2])
    assert words[:3] == ["python", "-m", "mmoe.train"]
    assert train(*words[3:], "trainer.max_epochs=1", "logger=none").code == 0


def test_files_stand_before_overrides():
    assert name_input(["a.csv", "x=1"]) == ["input='a.csv'", "x=1"]
    assert name_input(["a b.csv", "it's.csv", "--help"]) == [r"input=['a b.csv','it\'s.csv']", "--help"]
    assert name_input(["a\\"]) == [r"input='a\\'"]
    assert name_input(["input=a.csv"]) == ["input=a.csv"]
    assert name_input(["--config-dir", "conf"]) == ["--config-dir", "conf"]
    assert name_input([]) == []


@pytest.mark.parametrize(
    "value",
    ["plain", "two words", "a/b-*.csv", "/a/b.csv", "~/a.csv", "no", "NULL", "1e3", "12", ".5", "a: b", "#x",
     "a #x", "é", "[K]", "a,b", "", " x ", "x\ty", 'quo"te', "back\\slash", "${x}", "*", "~", "-", "a-", "x:",
     "2020-01-02"],
)  # fmt: skip
def test_text_survives_yaml(value: str):
    read = OmegaConf.create(f"x: {to_yaml({'k': [value], value or 'k2': 1})}")
    plain: Any = OmegaConf.to_container(read, resolve=True)
    assert plain["x"]["k"] == [value]


def test_values_survive_yaml():
    value = {"a": None, "b": True, "c": [1, 0.5, "yes"], "d": {"e": "f"}}
    assert OmegaConf.to_container(OmegaConf.create(f"x: {to_yaml(value)}")) == {"x": value}


# Real tables


@pytest.mark.parametrize(
    ("name", "labels", "out", "suspects"),
    [
        ("hillstrom/hillstrom.csv.gz", ["visit", "conversion", "spend"], set(), set()),
        ("hillstrom/hillstrom.csv.gz", ["visit"], set(), {"conversion", "spend"}),
        ("datacar/dataCar.csv.gz", ["clm"], {"X_OBSTAT_"}, {"numclaims", "claimcst0"}),
        ("ai4i/ai4i2020.csv", ["Machine_failure"], {"UDI", "Product ID"}, {"TWF", "HDF", "PWF", "OSF"}),
        ("movielens_small/ratings.csv.gz", ["rating"], set(), set()),
        ("student/student_*_new.csv", ["G1", "G2"], set(), set()),
        ("recsys_samples/tiny_parquet_*.parquet", ["clk"], set(), set()),
    ],
)
def test_real_tables(tables_dir: Path, name: str, labels: list[str], out: set[str], suspects: set[str]):
    files = find_files(str(tables_dir / name))
    csv = guess_options(files[0], {}) if file_kind(files[0]) == CSV else CsvOptions()
    table = read_table(files, csv)
    columns = {column: values_of(column, table[column]) for column in table.column_names}
    guesses = [guess(one) for column, one in columns.items() if column not in labels]
    assert {one.values.name for one in guesses if one.reason} == out
    inputs = [one.values for one in guesses if not one.reason]
    assert set(find_suspects(guess_tasks(labels, columns), inputs)) == suspects


def test_a_large_table_is_described_by_its_first_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("mmoe.describe.MAX_ROWS", 100)
    path = tmp_path / "rows.csv"
    pd.DataFrame({"a": range(250), "y": [0, 1] * 125}).to_csv(path, index=False)
    assert describe(str(path), ["y"], {"csv": {}, "test": None}).rows == "the first 100 rows"
    monkeypatch.setattr("mmoe.describe.MAX_ROWS", 250)
    assert describe(str(path), ["y"], {"csv": {}, "test": None}).rows == "250 rows"


@pytest.mark.parametrize(("rows", "size"), [(1, 16), (300, 16), (3000, 32), (10_000, 128), (10**9, 256)])
def test_small_tables_get_small_batches(rows: int, size: int):
    assert batch_size(rows) == size
