"""Tables: rows from files or frames, splits, kinds of columns, and bad input."""

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from omegaconf import OmegaConf

import mmoe
from mmoe.cli.command import run_name
from mmoe.data.encode import decode, encode
from mmoe.data.table_data import TableData
from mmoe.errors import ArgumentError, UserError

random = np.random.default_rng(0)
N = 400
CITIES = np.array(["Aarhus", "Bonn", "Cork", "Dover"])


def frame(count: int = N, seed: int = 0) -> pd.DataFrame:
    """Rows with every kind of column and of label."""
    draw = np.random.default_rng(seed)
    city = CITIES[draw.integers(0, 4, count)]
    amount = draw.gamma(2.0, 10.0, count).round(2)
    tags = ["|".join(draw.choice(["a", "b", "c", "d"], draw.integers(1, 4), False)) for _ in range(count)]
    click = (draw.random(count) < 1 / (1 + np.exp(2 - amount / 10))).astype(int)
    spend = np.where(click == 1, amount * 3 + draw.normal(size=count), np.nan).round(2)
    return pd.DataFrame(
        {
            "user": [f"u{i}" for i in draw.integers(0, 60, count)],
            "city": np.where(draw.random(count) < 0.1, None, city),
            "amount": np.where(draw.random(count) < 0.1, np.nan, amount),
            "tags": tags,
            "joined": pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 700, count), "D"),
            "clicked": click,
            "spend": spend,
            "visits": draw.poisson(amount / 10),
            "plan": np.where(amount > 25, "gold", np.where(amount > 12, "silver", "bronze")),
            "exposure": draw.random(count).round(3),
        }
    )


COLUMNS = {
    "user": {"kind": "categorical", "encoding": "embedding", "size": 4, "min_count": 3},
    "city": "categorical",
    "amount": "numeric",
    "tags": {"kind": "multi", "separator": "|"},
    "joined": "datetime",
}
TASKS = {
    "click": {"column": "clicked", "positive": [1]},
    "spend": {"column": "spend", "kind": "regression", "where": "clicked"},
    "visits": {"column": "visits", "kind": "count"},
    "plan": {"column": "plan", "kind": "multiclass"},
}


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    frame().to_csv(path, index=False)
    return path


def options(**changes: Any) -> dict[str, Any]:
    return {"train": "train.csv", "test": {"fraction": 0.25}, "columns": COLUMNS, "tasks": TASKS} | changes


def write_yaml(**changes: Any) -> None:
    folder = Path("conf/data")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_target_": "mmoe.data.table_data.TableData", **options(**changes)}
    (folder / "mine.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))


@pytest.fixture
def train_mine(train: Command) -> Command:
    quick = ["trainer.max_epochs=1", "logger=none", "figures=false", "hydra.run.dir=run"]
    return lambda *overrides: train("--config-dir", "conf", "data=mine", *quick, *overrides)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet", "feather"])
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, csv: Path, ending: str):
    path = tmp_path / f"rows.{ending}"
    if ending == "csv.gz":
        path.write_bytes(gzip.compress(csv.read_bytes()))
    elif ending in ("csv", "tsv"):
        frame().to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    else:
        getattr(frame(), f"to_{ending}")(path)
    ours = TableData(**options(train=str(path))).dataset
    theirs = TableData(**options()).dataset
    assert ours.schema.categorical == theirs.schema.categorical
    assert ours.schema.tasks == theirs.schema.tasks
    for split in ("train", "val", "test"):
        for a, b in zip(ours.splits[split][:5], theirs.splits[split][:5], strict=True):
            assert (a is None and b is None) or torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_statistics_come_from_the_training_rows_alone(csv: Path):
    data = TableData(**options(validation={"fraction": 0.5}))
    dataset = data.dataset
    rows = frame().iloc[dataset.positions["train"].numpy()]
    user, city = (next(c for c in dataset.schema.categorical if c.name == n) for n in ("user", "city"))
    counts = rows["user"].value_counts()
    assert set(user.levels) == set(counts.index[counts >= 3])
    assert user.has_rare
    assert set(city.levels) == set(rows["city"].dropna())
    assert city.has_missing
    (amount,) = (c for c in dataset.schema.numeric if c.name == "amount")
    assert amount.mean == pytest.approx(rows["amount"].mean())
    assert amount.has_missing
    spend = dataset.schema.tasks[1]
    assert spend.mean == pytest.approx(rows.loc[rows["clicked"] == 1, "spend"].mean(), rel=1e-5)


def test_a_column_of_numbers_or_dates_may_have_an_encoding(csv: Path, train_mine: Command):
    own = {
        "amount": {"kind": "numeric", "encoding": "standard"},
        "joined": {"kind": "datetime", "encoding": "piecewise_linear_and_values"},
        "exposure": {"kind": "numeric", "encoding": "auto"},
    }
    schema = TableData(**options(columns=own)).dataset.schema
    encodings = {column.name: column.encoding for column in schema.numeric}
    assert encodings == {"amount": "standard", "joined": "piecewise_linear_and_values", "exposure": ""}
    plain = TableData(**options(columns={name: one["kind"] for name, one in own.items()})).dataset.schema
    assert plain.categorical == schema.categorical  # the parts of dates do not change
    assert not any(column.encoding for column in plain.numeric)
    write_yaml(columns=own)
    assert train_mine().code == 0
    run, rows = mmoe.load("run"), frame(5, 3)
    assert run.network().inputs.num_outputs == mmoe.Inputs(run.schema).num_outputs
    assert run.predict(rows)["click_probability"].between(0, 1).all()


def test_rows_decode_to_what_was_read(csv: Path):
    data = TableData(**options())
    dataset = data.dataset
    for split, rows in dataset.splits.items():
        raw = frame().iloc[dataset.positions[split].numpy()].reset_index(drop=True)
        read = decode(rows, dataset.schema)
        seen = raw["city"].isin(next(c for c in dataset.schema.categorical if c.name == "city").levels)
        assert read["city"].where(seen).equals(raw["city"].where(seen))
        assert [set(tags) for tags in read["tags"]] == [set(tags.split("|")) for tags in raw["tags"]]
        np.testing.assert_allclose(read["amount"], raw["amount"].astype(np.float32))
        assert (read["joined.month"].astype(int) == raw["joined"].dt.month).all()
        np.testing.assert_array_equal(read["click_label"], raw["clicked"])
        np.testing.assert_allclose(read["spend_label"], raw["spend"].astype(np.float32))
        assert (read["plan_label"] == raw["plan"]).all()
        assert data.raw_column("exposure", split).tolist() == pytest.approx(raw["exposure"].tolist())
        assert data.raw_column("none", split) is None


def positions(**changes: Any) -> dict[str, list[int]]:
    found = TableData(**options(**changes)).dataset.positions
    assert {split: len(where) for split, where in found.items()} == {
        split: len(set(where.tolist())) for split, where in found.items()
    }
    return {split: where.tolist() for split, where in found.items()}


def test_random_splits_depend_on_the_seed_and_share_no_row(csv: Path):
    first, again, other = positions(), positions(), positions(split_seed=1)
    assert first == again != other
    assert sorted(row for rows in first.values() for row in rows) == list(range(N))
    assert [len(first[split]) for split in ("train", "val", "test")] == [270, 30, 100]


def test_rows_with_a_value_in_a_column(csv: Path):
    wanted = {"column": "visits", "value": [0, 3]}
    found = positions(validation={"column": "plan", "value": "gold"}, test=wanted)
    rows = frame()
    assert rows["visits"].iloc[found["test"]].isin([0, 3]).all()
    assert (rows["plan"].iloc[found["val"]] == "gold").all()
    assert not (rows["plan"].iloc[found["train"]] == "gold").any()


def test_groups_are_not_split(csv: Path):
    found = positions(validation={"fraction": 0.2, "by": "user"}, test={"fraction": 0.3, "by": "user"})
    users = [set(frame()["user"].iloc[rows]) for rows in found.values()]
    assert not users[0] & users[1]
    assert not users[0] & users[2]
    assert not users[1] & users[2]


@pytest.mark.parametrize("column", ["joined", "exposure"])
def test_the_last_rows_by_a_column(csv: Path, column: str):
    found = positions(validation={"last": 0.2, "by": column}, test={"last": 0.1, "by": column})
    values = frame()[column]
    assert values.iloc[found["train"]].max() < values.iloc[found["val"]].min()
    assert values.iloc[found["val"]].max() < values.iloc[found["test"]].min()
    assert len(found["test"]) == pytest.approx(40, abs=3)


def test_validation_and_test_rows_may_have_their_own_files(csv: Path):
    frame(50, 1).to_csv("val.csv", index=False)
    frame(70, 2).to_csv("test.csv", index=False)
    found = positions(validation="val.csv", test="test.csv")
    assert [len(found[split]) for split in ("train", "val", "test")] == [N, 50, 70]
    halves = positions(validation={"fraction": 0.5, "of": "test"}, test="test.csv")
    assert [len(halves[split]) for split in ("train", "val", "test")] == [N, 35, 35]


def test_a_glob_and_a_folder_are_the_rows_of_their_files(csv: Path):
    Path("parts").mkdir()
    frame()[:150].to_csv("parts/a.csv", index=False)
    frame()[150:].to_csv("parts/b.csv", index=False)
    whole = TableData(**options()).dataset
    for source in ("parts", "parts/*.csv", ["parts/a.csv", "parts/b.csv"]):
        found = TableData(**options(train=source)).dataset
        assert torch.equal(found.splits["train"].levels, whole.splits["train"].levels)
        assert found.schema.tasks == whole.schema.tasks


def test_a_table_trains_from_the_command_line(csv: Path, train_mine: Command, tmp_path: Path):
    write_yaml(main_task="click", weight="exposure")
    assert train_mine().code == 0
    run = mmoe.load("run")
    assert set(run.metrics["test"]) == set(TASKS)
    scored = run.scored()
    assert scored[[c for c in scored if c.startswith("plan_probability")]].sum(axis=1).round(6).eq(1).all()
    new = frame(30, 5).assign(city="Oslo")
    predicted = run.predict(new.drop(columns=["clicked", "spend", "visits", "plan", "exposure"]))
    assert predicted["click_probability"].between(0, 1).all()
    assert (predicted["visits_prediction"] >= 0).all()
    assert set(predicted["plan_class"]) <= {"gold", "silver", "bronze"}
    reordered = run.predict(new[new.columns[::-1]])
    assert predicted.equals(reordered[predicted.columns])


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["data=mine"], "runs/mine/*/metrics.json"),
        (["-m", "data=mine", "seed=0,1"], "runs/mine/*/[01]/metrics.json"),
        (["data=mine", "experiment=census"], "runs/census/*/metrics.json"),
    ],
)
def test_the_run_folder_has_the_name_of_the_data_set(
    csv: Path, train: Command, overrides: list[str], folder: str
):
    write_yaml()
    done = train("--config-dir", "conf", *overrides, "trainer.max_epochs=1", "logger=none")
    assert done.code == 0, done.err
    assert len(list(Path().glob(folder))) == 1 + ("-m" in overrides)
    assert len(list(Path("runs").iterdir())) == 1


def test_the_name_of_a_run_folder():
    for experiment, data, overrides, name in (
        ("census", "census", [], "census"),
        ("census", "mine", ["seed=1"], "mine"),
        ("census", "mine", ["experiment=census"], "census"),
        ("smoke", "census", ["experiment=smoke"], "smoke"),
        ("own", "mine", [], "own"),  # chosen in a configuration of the user
        (None, "mine", ["experiment=null"], "mine"),
    ):
        assert run_name(overrides, {"experiment": experiment, "data": data}) == name


def test_files_are_scored_like_frames(csv: Path, train_mine: Command, command: Callable[[str], Command]):
    write_yaml()
    assert train_mine().code == 0
    new = frame(90, 6)
    Path("new").mkdir()
    new[:40].to_csv("new/1.csv", index=False)
    new[40:].to_csv("new/2.csv", index=False)
    new.to_parquet("new.parquet")
    expected = mmoe.load("run").predict(new)
    for source in ("new", "new/*.csv", "new.parquet"):
        done = command("predict")("run=run", f"input={source}", "output=out.parquet", "id=[user,exposure]")
        assert done.code == 0, done.err
        out = pd.read_parquet("out.parquet")
        assert list(out.columns[:2]) == ["user", "exposure"]
        assert out["user"].tolist() == new["user"].tolist()
        pd.testing.assert_frame_equal(out[expected.columns], expected, check_dtype=False)
    done = command("predict")("run=run", "input=new.parquet", "output=out.csv", "id=user")
    assert done.code == 0, done.err
    assert pd.read_csv("out.csv")["user"].tolist() == new["user"].tolist()


def test_booleans_of_parquet_and_text_of_csv_are_the_same(
    train_mine: Command, command: Callable[[str], Command]
):
    rows = frame().assign(large=lambda one: one["amount"].fillna(0) > 20)[["large", "clicked"]]
    rows.astype(bool).to_parquet("train.parquet")
    columns, tasks = {"large": "categorical"}, {"click": {"column": "clicked"}}
    write_yaml(train="train.parquet", columns=columns, tasks=tasks)
    assert train_mine().code == 0
    run = mmoe.load("run")
    expected = run.predict(rows)
    assert expected["click_probability"].nunique() == 2
    as_booleans = run.evaluate(data={"test": "train.parquet"}, resamples=0)["checkpoints"]
    for spelling in (("True", "False"), ("true", "false"), ("TRUE", "FALSE"), (1, 0)):
        rows.astype(bool).replace({True: spelling[0], False: spelling[1]}).to_csv("new.csv", index=False)
        assert command("predict")("run=run", "input=new.csv", "output=out.parquet").code == 0
        pd.testing.assert_frame_equal(pd.read_parquet("out.parquet"), expected)
        assert run.evaluate(data={"test": "new.csv"}, resamples=0)["checkpoints"] == as_booleans


def test_missing_and_unseen_values_are_scored(csv: Path, train_mine: Command):
    write_yaml()
    assert train_mine().code == 0
    run, new = mmoe.load("run"), frame(5, 7)
    for column in COLUMNS:
        gaps = run.predict(new.assign(**{column: None}))
        assert gaps.select_dtypes("number").notna().all().all()
    unseen = run.predict(new.assign(user="nobody", city="nowhere", tags="x|y"))
    assert unseen.select_dtypes("number").notna().all().all()
    extra = run.predict(new.assign(other=1))
    assert extra.equals(run.predict(new))
    with pytest.raises(UserError, match="column amount is missing; the columns are"):
        run.predict(new.drop(columns="amount"))


MODELS = [
    "mmoe", "omoe", "ple", "single_task", "shared_bottom", "cross_stitch", "l2_constrained",
    "tensor_factorization", "ensemble", "dselect_k", "adatt", "stem",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[f"model={model}"] for model in MODELS] + [["replicas=2"]])
def test_every_method_learns_every_kind_of_task(csv: Path, train_mine: Command, overrides: list[str]):
    write_yaml()
    done = train_mine(*overrides)
    assert done.code == 0, done.err
    values = mmoe.load("run").metrics["test"]
    assert all(np.isfinite(value) for task in values.values() for value in task.values())


def test_a_run_is_evaluated_exported_and_resumed(
    csv: Path,
    train_mine: Command,
    train: Command,
    command: Callable[[str], Command],
    capfd: pytest.CaptureFixture[str],
):
    write_yaml()
    assert train_mine("learner.scheduler=null").code == 0
    frame(80, 8).to_csv("later.csv", index=False)
    assert command("evaluate")("run=run", "resamples=20", "data.test=later.csv").code == 0
    assert Path("run/evaluation_test_best_later.csv.json").exists()
    assert command("evaluate")("run=run", "resamples=0", "data.test=[later.csv,train.csv]").code == 0
    assert Path("run/evaluation_test_best_later.csv_train.csv.json").exists()
    wrong = command("evaluate")("run=run", "data.dir=.")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    shutil.copy("train.csv", "copy.csv")
    for split, key in (("test", "test"), ("val", "validation")):
        trained = command("evaluate")(
            "run=run", "resamples=0", f"split={split}", f"data.{key}=[later.csv,copy.csv]"
        )
        assert trained.code == 0, trained.err
        assert "copy.csv: has the rows that the run was trained on" in trained.out + trained.err
        assert "later.csv: has the rows" not in trained.out + trained.err
    run, drawn_again = mmoe.load("run"), "the validation rows are drawn again, so the run was trained on some"
    for changes, is_warned in (({"split_seed": 7}, True), ({"eval_batch_size": 7}, False)):
        capfd.readouterr()
        run.evaluate("val", data=changes, resamples=0)
        assert (drawn_again in "".join(capfd.readouterr())) == is_warned
    assert command("export")("run=run").code == 0
    assert train("resume=run", "trainer.max_epochs=2").code == 0
    frame(seed=3).to_csv("train.csv", index=False)
    changed = command("evaluate")("run=run")
    assert changed.code == 2
    assert "the files have changed since the run" in changed.err


BAD = {
    "a column that the file lacks": (
        {"columns": {"amout": "numeric"}}, "must have a column 'amout'; the nearest is 'amount'",
    ),
    "a label among the inputs": (
        {"columns": {**COLUMNS, "spend": "numeric"}}, "data.columns: 'spend' is the column that the label of",
    ),
    "where naming no column": (
        {"tasks": {"a": {"column": "spend", "kind": "regression", "where": "none"}}}, "column 'none'",
    ),
    "a mask that leaves no rows": (
        {"tasks": {**TASKS, "a": {"column": "spend", "kind": "regression", "where": {"city": ["Rome"]}}}},
        "must have a label in at least one training row",
    ),
    "a regression label with text": (
        {"tasks": {"a": {"column": "plan", "kind": "regression"}}},
        r"train.csv, line [0-9]+, column 9 \(plan\): must be a number, is",
    ),
    "a negative weight": (
        {"weight": "minus"}, r"line 5, column 11 \(minus\): must be a weight of at least 0, is -1",
    ),
    "a missing weight": (
        {"weight": "gap"}, r"line 6, column 12 \(gap\): must be a weight of at least 0, is missing",
    ),
    "a negative count": (
        {"tasks": {"a": {"column": "minus", "kind": "count"}}},
        r"train.csv, line 5, column 11 \(minus\): must be a count",
    ),
    "an empty file": ({"train": "empty.csv"}, "empty.csv: "),
    "only a header": ({"train": "header.csv"}, "header.csv: must have at least one row; has none"),
    "a folder without files": ({"train": "nothing"}, "data.train: nothing: must hold data files"),
    "mixed kinds of files": ({"train": ["train.csv", "a.parquet"]}, "must be of one kind"),
    "no such file": ({"train": "gone.csv"}, "data.train: gone.csv: no such file"),
    "a fraction of 1": ({"validation": {"fraction": 1}}, "data.validation.fraction=1: must be a number"),
    "a split with one group": (
        {"validation": {"fraction": 0.1, "by": "one"}}, "must have at least two groups, has only 'x'",
    ),
    "a by column with missing values": (
        {"test": {"fraction": 0.1, "by": "gap"}},
        r"train.csv, line 6, column 12 \(gap\): must have a value, because data.test.by needs one",
    ),
    "an unknown key of a split": ({"test": {"fracton": 0.1}}, "data.test.fracton: must be .*fraction?"),
    "an unknown key of a column": (
        {"columns": {"user": {"kind": "categorical", "min_counts": 3}}}, "did you mean min_count?",
    ),
    "an encoding of another kind": (
        {"columns": {"amount": {"kind": "numeric", "encoding": "hash"}}},
        "columns.amount.encoding=hash: must be one of auto, standard, .* for a numeric column",
    ),
    "an unknown kind": ({"columns": {"user": "number"}}, "columns.user.kind=number: must be one of"),
    "an unknown key of a task": (
        {"tasks": {"a": {"column": "clicked", "positiv": [1]}}}, "tasks.a.positiv: .*did you mean positive?",
    ),
    "an unknown key of csv": ({"csv": {"delimeter": ";"}}, "csv.delimeter: .*delimiter"),
    "an unknown key": ({"trian": "x"}, "data: .*trian.*did you mean train?"),
    "no tasks": ({"tasks": {}}, "data.tasks={}: must name at least one task"),
    "an unknown main task": ({"main_task": "clik"}, "data.main_task=clik: must be one of click, spend"),
    "another test file": ({"test": "other.csv"}, "other.csv: must have the columns 'user', 'city'"),
    "an infinite number": (
        {"columns": {"inf": "numeric"}}, r"line 4, column 14 \(inf\): must be a finite number",
    ),
    "text in a column of numbers": (
        {"columns": {"city": "numeric"}},
        r"train.csv, line [0-9]+, column 2 \(city\): must be a number, is '",
    ),
    "text in a column of dates": (
        {"columns": {"city": "datetime"}},
        r"train.csv, line [0-9]+, column 2 \(city\): must be a date, or missing, is '",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gives_one_line_and_leaves_nothing(train_mine: Command, what: str):
    changes, message = BAD[what]
    rows = frame()
    rows["minus"] = np.where(np.arange(N) == 3, -1, 1)
    rows["gap"] = np.where(np.arange(N) == 4, np.nan, 1)
    rows["one"], rows["inf"] = "x", np.where(np.arange(N) == 2, np.inf, 1)
    rows.to_csv("train.csv", index=False)
    rows[["clicked", "spend"]].to_csv("other.csv", index=False)
    Path("empty.csv").write_text("")
    rows[:0].to_csv("header.csv", index=False)
    Path("a.parquet").write_bytes(b"")
    Path("nothing").mkdir()
    write_yaml(**{"validation": {"fraction": 0.2}, **changes})
    done = train_mine()
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    assert re.search(message, done.err), done.err
    assert not Path("run").exists()


def test_duplicate_names_are_refused(train_mine: Command):
    Path("train.csv").write_text("a,a,y\n1,2,0\n1,2,1\n")
    write_yaml(columns={"a": "numeric"}, tasks={"t": {"column": "y"}})
    done = train_mine()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "'a'" in done.err


def test_awkward_columns_are_encoded():
    rows = pd.DataFrame(
        {
            "constant": 7, "empty": None, "big": np.arange(100) + 2**40,
            "digits": [f"{i % 7:03d}" for i in range(100)],
            "flag": np.arange(100) % 2 == 0, "lists": [[i % 3, 5] for i in range(100)],
            "y": np.arange(100) % 2,
        }
    )  # fmt: skip
    rows.to_parquet("rows.parquet")
    columns = {
        "constant": "numeric", "empty": "categorical", "big": "numeric", "digits": "categorical",
        "flag": "categorical", "lists": "multi",
    }  # fmt: skip
    tasks = {"t": {"column": "y"}}
    data = TableData(train="rows.parquet", test={"fraction": 0.2}, columns=columns, tasks=tasks)
    dataset = data.dataset
    big = next(c for c in dataset.schema.numeric if c.name == "big")
    assert big.origin >= 2**40
    assert len(set(dataset.splits["train"].numbers[:, 1].tolist())) == len(dataset.splits["train"].labels)
    by_name = {c.name: c for c in dataset.schema.categorical}
    assert by_name["digits"].levels == tuple(f"{i:03d}" for i in range(7))
    assert by_name["lists"].levels == ("0", "1", "2", "5")
    assert by_name["empty"].levels == ()
    codes = encode(pd.DataFrame({**rows.iloc[:2].to_dict("list"), "flag": ["true", "false"]}), dataset.schema)
    assert (codes.levels[:, 2] < dataset.schema.num_codes).all()
    assert mmoe.Inputs(dataset.schema)(codes.levels, codes.numbers).isfinite().all()


def test_python_and_command_line_give_the_same_run(train_mine: Command):
    rows = frame()
    table = mmoe.Table(
        rows, {"click": "clicked", "spend": mmoe.Regression("spend", where="clicked")},
        columns={**COLUMNS, "visits": None, "plan": None, "exposure": None}, test={"fraction": 0.25},
    )  # fmt: skip
    assert "task spend: regression (where clicked)" in repr(table)
    assert "multi (separator |)" in repr(table)
    run = mmoe.fit(table, "ours", "trainer.max_epochs=1", "logger=none", "figures=false")
    assert isinstance(run, mmoe.Run)
    rows.to_parquet("rows.parquet")
    tasks = {name: TASKS[name] for name in ("click", "spend")}
    columns = {name: COLUMNS[name] for name in rows if name in COLUMNS}
    write_yaml(train="rows.parquet", tasks=tasks, columns=columns, validation={"fraction": 0.1})
    assert train_mine("+data.batch_size=16").code == 0  # as `describe` drafts it for so few rows
    assert run.predictions.equals(mmoe.load("run").predictions)
    index = pd.Index(list("abc"), name="key")
    assert run.predict(frame(3, 9).set_index(index)).index.equals(index)
    with pytest.raises(UserError, match="folder=ours: must not hold a run"):
        mmoe.fit(table, "ours")
    with pytest.raises(UserError, match="num_exprts"):
        mmoe.fit(table, "second", "model.num_exprts=4")
    assert not Path("second").exists()
    moved = Path("ours").rename("elsewhere")
    assert mmoe.load(moved).rows("train").labels.shape == (270, 2)


def test_a_missing_value_that_a_split_needs_has_a_place_in_a_frame():
    rows = frame()
    rows.loc[rows.index[4], "city"] = None
    rows["city"] = rows["city"].mask(rows.index < 4, "Rome")
    given = mmoe.Table(rows, ["clicked"], test={"fraction": 0.25, "by": "city"})
    with pytest.raises(UserError, match=r"column city, row 5: must have a value, because data.test.by needs"):
        mmoe.fit(given, "run", "trainer.max_epochs=1", "logger=none", "figures=false")
    assert not Path("run").exists()


def test_a_second_rule_of_a_split_names_the_override(csv: Path):
    with pytest.raises(ArgumentError) as raised:
        TableData(**options(validation={"fraction": 0.1, "last": 0.1, "by": "visits"}))
    hint = "'~data.validation' '+data.validation={...}' replaces the rule of the configuration"
    assert str(raised.value) == f"validation.fraction+last: give one of fraction, last and column; {hint}"
    for train in (None, "", [], [""]):
        with pytest.raises(ArgumentError, match=r"^train=.*: must be a file or a list of files$"):
            TableData(**options(train=train))


def test_tasks_of_a_configuration_must_be_a_mapping():
    for tasks in ("clicked", ["clicked"]):
        with pytest.raises(ArgumentError, match=r"^tasks=.*: must map names of tasks"):
            TableData(**options(tasks=tasks))


def test_tasks_may_be_a_list_of_columns():
    table = mmoe.Table(frame(), ["clicked", "visits"])
    assert table.tasks == mmoe.Table(frame(), {"clicked": "clicked", "visits": "visits"}).tasks
    with pytest.raises(ArgumentError, match="must map names of tasks to tasks or columns, or be a list"):
        mmoe.Table(frame(), [])


def test_a_training_that_still_improves_names_a_longer_one(csv: Path, train_mine: Command, train: Command):
    write_yaml()
    hint = "longer training may be better: "
    assert hint in train_mine("card=true").out
    assert hint in Path("run/card.md").read_text()
    assert (
        hint not in train("experiment=smoke", "trainer.max_epochs=1", "card=true", "hydra.run.dir=smoke").out
    )
    assert hint not in Path("smoke/card.md").read_text()


def test_a_table_without_an_input_is_refused(train_mine: Command):
    rows = pd.DataFrame({"click": np.arange(60) % 2, "same": 1, "row": [f"id {i}" for i in range(60)]})
    rows.to_csv("train.csv", index=False)
    write_yaml(columns=None, tasks={"click": {"column": "click"}}, main_task="click", weight=None)
    done = train_mine()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "train.csv: must have a column that is an input; column same is left out: " in done.err
