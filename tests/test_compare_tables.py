"""The comparison on public tables: a small made-up one, and the real ones where the machine has them."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Result

QUICK = ["runs=2", "trials=2", "resamples=20", "folder=work", "out=out"]


@pytest.mark.slow
def test_table_and_runs(script: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"Dalc": random.integers(1, 6, 300), "sex": random.choice(["F", "M"], 300)})
    rows["G1"] = rows["Dalc"] * 2 + random.integers(0, 3, 300)
    rows["G2"] = rows["G1"] + random.integers(0, 3, 300)
    rows["class"] = np.where(rows["G1"] + random.normal(size=300) > 7, "High", "Low")
    Path("student").mkdir()
    rows.to_csv("student/student_por_new.csv", index=False)
    monkeypatch.setenv("MMOE_TABLES_DIR", str(Path().absolute()))
    done = script("compare_tables", "tables=student", *QUICK, "trainer.max_epochs=5")
    assert done.code == 0, done.err
    assert Path("out/tables.md").read_text() in done.out
    found = pd.read_csv("out/runs.csv").set_index(["task", "model", "run"]).sort_index()
    contestants = {"MMoE", "shared bottom", "single-task", "LightGBM", "constant"}
    assert set(found.index) == {
        (t, c, r) for t in ("first", "second", "high") for c in contestants for r in (0, 1)
    }
    # The first mark is a clear function of one column, so all contestants beat the constant.
    rmse = found.loc["first", "rmse"].unstack("model")
    assert (rmse.drop(columns="constant").max(axis=1) < 0.8 * rmse["constant"]).all()
    assert (found.loc[("high", "constant"), "auroc"] == 0.5).all()

    # The chosen trial has the best validation value, and its settings are in the table.
    chosen = pd.read_csv("out/settings.csv").set_index(["task", "model"])
    for (task, model), line in chosen.iterrows():
        kept = json.loads(
            Path(f"work/student/{task}/{model.lower().replace(' ', '_')}/search.json").read_text()
        )
        best = max if task == "high" else min
        assert kept["value"] == best(kept["values"]) == kept["values"][line["trial"]]
        assert json.loads(line["settings"]).keys() == kept["settings"].keys()
    assert len(chosen) == 12

    # Differences are paired by seed.
    paired = pd.read_csv("out/differences.csv").set_index(["task", "metric", "model"])
    line = paired.loc[("first", "rmse", "single-task")]
    assert line["difference"] == pytest.approx((rmse["single-task"] - rmse["MMoE"]).mean(), abs=1e-4)
    assert line["low_of_rows"] < line["high_of_rows"]
    assert (paired.xs("MMoE", level="model")["high_of_rows"] == 0).all()

    # What is finished is used again, and other settings are refused.
    before = {path: path.stat().st_mtime_ns for path in Path("work/student").rglob("*.npy")}
    assert len(before) == 12
    assert script("compare_tables", "tables=student", *QUICK, "trainer.max_epochs=5").code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    done = script(
        "compare_tables", "tables=student", *QUICK, "runs=3", "trainer.max_epochs=5", "activation=relu"
    )
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "holds results of other settings: runs, student, overrides; " in done.err


def test_settings_are_drawn_from_their_space(script: Callable[..., Result]):
    script("compare_tables", "tables=none")  # scripts are importable from here on
    from random_search import draw

    space = {
        "units": [[8], [16, 8]], "count": {"low": 2, "high": 4},
        "leaves": {"low": 2, "high": 64, "log": True},
        "rate": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": {"low": 0.0, "high": 0.4},
    }  # fmt: skip
    random = np.random.default_rng(0)
    drawn = pd.DataFrame([draw(space, random) for _ in range(500)])
    assert set(map(tuple, drawn["units"])) == {(8,), (16, 8)}
    assert set(drawn["count"]) == {2, 3, 4}
    assert drawn["leaves"].min() == 2
    assert drawn["leaves"].max() == 64
    assert drawn["leaves"].median() == pytest.approx(11, abs=3)
    assert drawn["rate"].between(1e-4, 1e-2).all()
    assert drawn["rate"].median() == pytest.approx(1e-3, rel=0.3)
    assert drawn["dropout"].mean() == pytest.approx(0.2, abs=0.02)


def test_search_takes_the_best_trial_by_validation_rows(
    script: Callable[..., Result], capfd: pytest.CaptureFixture[str]
):
    script("compare_tables", "tables=none")
    from random_search import search
    from table_contestants import MAX_SEARCH_ROWS, SEARCH_SEEDS, Contestant, find_settings

    from mmoe.data.batch import Batch
    from mmoe.data.schema import Schema
    from mmoe.data.splits import Dataset
    from mmoe.tasks import Regression

    space = {"x": {"low": -1.0, "high": 1.0}}
    for larger, best in ((True, max), (False, min)):
        found = search(space, 9, "a", lambda settings: settings["x"], larger)
        assert found["settings"]["x"] == found["value"] == best(found["values"])
    assert found["values"] != search(space, 9, "b", lambda settings: settings["x"], True)["values"]

    found = search(space, 9, "a", lambda settings: settings["x"] if settings["x"] > 0 else np.nan, False)
    assert None in found["values"]
    assert found["value"] == min(value for value in found["values"] if value is not None) > 0
    with pytest.raises(SystemExit):
        search(space, 9, "a", lambda settings: np.nan, False)
    assert capfd.readouterr().err == "error: trials=9: all trials of a diverged\n"

    # Settings are compared by the rows of the validation split whose label is known.
    rows = Batch(
        torch.zeros(3, 0), torch.zeros(3, 0), torch.tensor([[0.0], [0.25], [9.0]]),
        torch.tensor([[True], [True], [False]]),
    )  # fmt: skip
    data = Dataset(Schema((), (), (Regression("spend", name="spend"),)), {"val": rows}, {})
    seen = set()

    def predict(settings: dict[str, float], seeds: range, split: str, max_rows: int) -> np.ndarray:
        seen.add((seeds, split, max_rows))
        return np.full((len(seeds), 3, 1), settings["x"])

    found = find_settings(Contestant("t", "stub", space, predict), data, 0, "a", 9)
    assert seen == {(SEARCH_SEEDS, "val", MAX_SEARCH_ROWS)}
    x = found["settings"]["x"]
    assert found["value"] == pytest.approx((x**2 + (x - 0.25) ** 2) / 2)


def test_validation_rows_must_compare_trials(
    script: Callable[..., Result], capfd: pytest.CaptureFixture[str]
):
    script("compare_tables", "tables=none")
    from table_contestants import check_validation_rows

    from mmoe.data.batch import Batch
    from mmoe.data.schema import Schema
    from mmoe.data.splits import Dataset
    from mmoe.tasks import Binary

    schema = Schema((), (), (Binary("click", ("1",), name="click"),))
    for labels, known, found in (
        ([[0.0], [0.0]], None, "2 known labels, all equal"),
        ([[0.0], [1.0]], torch.zeros(2, 1, dtype=torch.bool), "no known label"),
    ):
        rows = Batch(torch.zeros(2, 0), torch.zeros(2, 0), torch.tensor(labels), known)
        with pytest.raises(SystemExit):
            check_validation_rows("mine", Dataset(schema, {"val": rows}, {}))
        expected = f"error: tables=mine: the validation rows of task click have {found}\n"
        assert capfd.readouterr().err == expected
    rows = Batch(torch.zeros(2, 0), torch.zeros(2, 0), torch.tensor([[0.0], [1.0]]))
    check_validation_rows("mine", Dataset(schema, {"val": rows}, {}))


def test_single_task_has_the_known_rows_of_one_task(script: Callable[..., Result]):
    script("compare_tables", "tables=none")
    from table_networks import rows_of_task

    from mmoe.data.batch import Batch
    from mmoe.data.schema import Schema
    from mmoe.data.splits import Dataset
    from mmoe.tasks import Binary, Regression

    labels, known = (
        torch.tensor([[1.0, 5.0], [0.0, 0.0], [1.0, 7.0]]),
        torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(),
    )
    rows = Batch(torch.zeros(3, 0), torch.zeros(3, 0), labels, known)
    tasks = (Binary("click", ("1",), name="click"), Regression("spend", name="spend"))
    data = Dataset(Schema((), (), tasks), {"train": rows, "val": rows}, {"train": torch.arange(3)})
    own = rows_of_task(data, 1)
    assert own.schema.tasks == tasks[1:]
    assert own.splits["train"].labels.tolist() == [[5.0], [7.0]]
    assert own.positions["train"].tolist() == [0, 2]
    assert own.splits["val"].known.tolist() == [[True], [False], [True]]
    assert rows_of_task(data, 0).splits["train"].labels.tolist() == [[1.0], [0.0], [1.0]]


def test_networks_get_the_settings(script: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    script("compare_tables", "tables=none")
    import table_networks
    from compare_tables import table_overrides
    from omegaconf import OmegaConf

    rows = pd.DataFrame({"Dalc": np.linspace(0, 1, 100) ** 2, "class": ["High", "Low"] * 50})
    rows["G1"] = rows["G2"] = rows["Dalc"] / 2
    Path("student").mkdir()
    rows.to_csv("student/student_por_new.csv", index=False)
    monkeypatch.setenv("MMOE_TABLES_DIR", str(Path().absolute()))
    trained = []

    def train(config: Any, data: Any, *rest: int) -> Callable[..., np.ndarray]:
        trained.append((OmegaConf.to_container(config), data, rest))
        return lambda rows: np.zeros((len(rows.labels), 1))

    monkeypatch.setattr(table_networks, "train", train)
    settings = {
        "inputs": "standard", "data.num_bins": 8, "learner.optimizer.lr": 0.5, "steps_per_epoch": 7,
        "weight_of_others": 0.25,
    }  # fmt: skip
    overrides = table_overrides("student", Path(), [])
    for model in ("mmoe", "single_task"):
        predict = partial(table_networks.predict_with_networks, overrides, model, 1, settings)
        assert predict(range(5, 7), "test", max_rows=20).shape == (2, 30, 1)
    (config, data, rest), _, (_, alone, rest_alone), _ = trained
    assert (rest, trained[1][2], rest_alone) == ((1, 7, 5), (1, 7, 6), (0, 7, 5))  # task, steps, seed
    assert config["objective"]["task_weights"] == {"first": 0.25, "high": 0.25}
    assert config["learner"]["optimizer"]["lr"] == 0.5
    assert "Standardize" in config["inputs"]["numeric"]["_target_"]
    assert len(data.schema.numeric[0].bins) == 9
    assert len(data.splits["train"].labels) == len(alone.splits["train"].labels) == 20
    assert [task.name for task in alone.schema.tasks] == ["second"]
    # The split is that of the script, and the same for all contestants.
    other = table_networks.encoded_rows((*overrides, "data.split_seed=0"))
    assert (
        data.positions["test"].tolist()
        == alone.positions["test"].tolist()
        != other.positions["test"].tolist()
    )


def test_networks_train_as_mmoe_train_does(
    script: Callable[..., Result], train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    script("compare_tables", "tables=none")
    from compare_tables import CONFIGS, table_overrides
    from table_networks import predict_with_networks

    random = np.random.default_rng(0)
    rows = pd.DataFrame({"Dalc": random.normal(size=300), "sex": random.choice(["F", "M"], 300)})
    rows["G1"] = rows["Dalc"] + random.normal(size=300)
    rows["G2"] = rows["G1"] + (rows["sex"] == "F")
    rows["class"] = np.where(rows["G2"] > 0, "High", "Low")
    Path("student").mkdir()
    rows.to_csv("student/student_por_new.csv", index=False)
    monkeypatch.setenv("MMOE_TABLES_DIR", str(Path().absolute()))
    overrides = table_overrides("student", Path(), ["trainer.max_epochs=4"])
    settings = {"inputs": "piecewise", "steps_per_epoch": 5, "weight_of_others": 0.5, "model.dropout": 0.1}
    ours = predict_with_networks(overrides, "mmoe", 1, settings, range(3, 4), "test")
    done = train(
        "--config-dir", str(CONFIGS), *overrides[1:], "model=mmoe", "inputs=piecewise", "model.dropout=0.1",
        "objective.task_weights={first:0.5,high:0.5}", "monitor=val/second/mse", "seed=3", "logger=none",
        "data.batch_size=33", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    theirs = pd.read_parquet("run/predictions.parquet")["second_prediction"]
    np.testing.assert_allclose(ours[0, :, 0], theirs, rtol=1e-5)


def test_the_constant_is_the_best_prediction_without_inputs(script: Callable[..., Result]):
    script("compare_tables", "tables=none")
    from table_report import constant_prediction

    from mmoe.tasks import Binary, Multiclass, Regression

    assert constant_prediction(Binary("a", ("1",), name="a"), np.array([0, 0, 0, 1.0])) == [0.25]
    assert constant_prediction(Regression("a", name="a"), np.array([1.0, 2.0])) == [1.5]
    classes = Multiclass("a", ("x", "y", "z"), name="a")
    assert constant_prediction(classes, np.array([0.0, 2, 2, 2])).tolist() == [0.25, 0, 0.75]


def test_clear_differences_are_counted_by_task(script: Callable[..., Result]):
    script("compare_tables", "tables=none")
    from table_report import count_table

    lines = []
    for task, metric, larger, difference in (
        ("a", "auroc", True, 0.2), ("a", "average_precision", True, -0.2), ("b", "rmse", False, 0.2),
        ("c", "rmse", False, 0.01),
    ):  # fmt: skip
        for model in ("MMoE", "single-task"):
            shift = difference * (model != "MMoE")
            lines.append({
                "table": "t", "task": task, "metric": metric, "larger_is_better": larger, "model": model,
                "difference": shift, "half_interval_of_seeds": 0.1,
                "low_of_rows": shift - 0.1, "high_of_rows": shift + 0.1,
            })  # fmt: skip
    assert count_table(pd.DataFrame(lines)).splitlines()[2] == "| single-task | 1 | 1 | 1 |"


def test_a_star_needs_both_intervals(script: Callable[..., Result]):
    script("compare_tables", "tables=none")
    from table_report import is_clear

    names = ("difference", "half_interval_of_seeds", "low_of_rows", "high_of_rows")
    for values, expected in (
        ((1.0, 0.5, 0.2, 2.0), True), ((-1.0, 0.5, -2.0, -0.2), True),
        ((1.0, 1.5, 0.2, 2.0), False), ((1.0, 0.5, -0.2, 2.0), False), ((1.0, 0.5, np.nan, np.nan), False),
    ):  # fmt: skip
        assert is_clear(dict(zip(names, values, strict=True))) is expected


def test_films_are_joined_with_their_ratings(script: Callable[..., Result]):
    Path("ratings.csv").write_text("userId,movieId,rating,timestamp\r\n7,2,4.0,20\r\n7,1,3.5,10\r\n")
    Path("movies.csv").write_text('movieId,title,genres\r\n1,"Heat, The (1995)",Action|Crime\r\n2,Odd,x\r\n')
    done = script("join_movielens", ".", "rated.parquet")
    assert done.code == 0, done.err
    rows = pd.read_parquet("rated.parquet")
    assert rows["liked"].tolist() == [1, 0]
    assert rows["genres"].tolist() == ["x", "Action|Crime"]
    assert rows["year"].fillna(0).tolist() == [0, 1995]
    assert script("join_movielens", "nowhere", "x.parquet").err == "error: nowhere: must hold ratings.csv\n"


def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MMOE_TABLES_DIR", raising=False)
    for argument, message in (
        ("tables=none", "error: tables=none: must be some of ai4i, datacar"),
        ("runs=1", "error: runs=1: must be an integer of at least 2"),
        ("tables=student", "error: MMOE_TABLES_DIR: must be set"),
    ):
        done = script("compare_tables", argument)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hillstrom", "datacar", "movielens", "student", "ai4i"])
def test_the_configurations_fit_the_real_tables(script: Callable[..., Result], name: str):
    if not os.environ.get("MMOE_TABLES_DIR"):
        pytest.skip("MMOE_TABLES_DIR is not set: no public tables here")
    done = script("compare_tables", f"tables={name}", *QUICK, "trainer.max_epochs=1")
    assert done.code == 0, done.err
