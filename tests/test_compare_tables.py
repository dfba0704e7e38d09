"""The comparison on tables of other people: a small made-up one, and the real ones where they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Result

QUICK = ["runs=2", "trials=2", "resamples=20", "folder=work", "out=out", "trainer.max_epochs=1"]


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
    done = script("compare_tables", "tables=student", *QUICK)
    assert done.code == 0, done.err
    assert Path("out/tables.md").read_text() in done.out
    found = pd.read_csv("out/runs.csv")
    assert found.groupby(["model", "task"])["run"].apply(list).map(tuple).unique().tolist() == [(0, 1)]
    trees = found[found["model"].str.startswith("LightGBM")]
    assert (trees[trees["task"] == "first"]["rmse"] < 3).all()

    # The metrics of a network are those of its run folder, and differences are paired by seed.
    metrics = json.loads(Path("work/student/single-task/metrics.json").read_text())
    lines = found[found["model"] == "single-task"].set_index(["task", "run"])
    for task, metric in (("first", "rmse"), ("high", "auroc"), ("high", "average_precision")):
        for run in (0, 1):
            expected = metrics["runs"][run]["test"][task][metric]
            assert lines.loc[(task, run), metric] == pytest.approx(expected, rel=1e-4)
    paired = pd.read_csv("out/differences.csv").set_index(["task", "metric", "model"])
    line = paired.loc[("first", "rmse", "single-task")]
    base = found[(found["model"] == "MMoE") & (found["task"] == "first")]["rmse"].to_numpy()
    assert line["difference"] == pytest.approx((lines.loc["first"]["rmse"] - base).mean(), abs=1e-4)
    assert line["low_of_rows"] < line["high_of_rows"]
    assert (paired.xs("MMoE", level="model")["high_of_rows"] == 0).all()

    # What is finished is used again, and other settings are refused.
    before = {path: path.stat().st_mtime_ns for path in Path("work/student").rglob("*.parquet")}
    assert len(before) == 4
    assert script("compare_tables", "tables=student", *QUICK).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    done = script("compare_tables", "tables=student", *QUICK, "runs=3", "learner.optimizer.lr=0.1")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.endswith("holds results of other settings of runs, student\n")


def test_levels_are_ranked_by_known_weighted_labels(script: Callable[..., Result]):
    script("compare_tables", "tables=none")  # scripts are importable from here on
    import torch
    from boosting import lightgbm_inputs

    from mmoe.data.batch import Batch
    from mmoe.data.schema import Categorical, Schema
    from mmoe.data.splits import Dataset
    from mmoe.tasks import Regression

    tags = Categorical("tags", ("x", "y"), is_multi=True, separator="|", max_values=2)
    schema = Schema((Categorical("city", ("a", "b", "c")), tags), (), (Regression("spend", name="spend"),))
    rows = Batch(
        torch.tensor([[0, 3, 4], [1, 4, 5], [2, 5, 5], [2, 3, 5]]),
        torch.zeros(4, 0),
        torch.tensor([[5.0], [-3.0], [9.0], [-9.0]]),
        torch.tensor([[True], [True], [True], [False]]),
        torch.tensor([[1.0], [1.0], [3.0], [1.0]]),
    )
    data = Dataset(schema, {"train": rows}, {})
    ranks = lightgbm_inputs(data, 0, "train")
    assert np.argsort(ranks[:3, 0]).tolist() == [1, 0, 2]  # the unknown label does not count
    assert ranks[:, 1:].tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]
    # The weighted mean label is 5.8. With the prior, a level nobody has lies there, above those of 5 and -3.
    unseen = schema.num_levels
    test = rows._replace(levels=torch.tensor([[0, 3, 4], [1, 3, 4], [2, 3, 4], [unseen, 3, 4]]))
    data.splits["test"] = test
    assert np.argsort(lightgbm_inputs(data, 0, "test", prior=10)[:, 0]).tolist() == [1, 0, 3, 2]
    assert np.argsort(lightgbm_inputs(data, 0, "test")[:, 0]).tolist() == [3, 1, 0, 2]


def test_a_star_needs_both_intervals(script: Callable[..., Result]):
    script("compare_tables", "tables=none")
    from compare_tables import is_supported

    names = ("difference", "half_interval_of_seeds", "low_of_rows", "high_of_rows")
    for values, expected in (
        ((1.0, 0.5, 0.2, 2.0), True), ((-1.0, 0.5, -2.0, -0.2), True),
        ((1.0, 1.5, 0.2, 2.0), False), ((1.0, 0.5, -0.2, 2.0), False), ((1.0, 0.5, np.nan, np.nan), False),
    ):  # fmt: skip
        assert is_supported(dict(zip(names, values, strict=True))) is expected


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
        pytest.skip("MMOE_TABLES_DIR is not set: no tables of other people here")
    done = script("compare_tables", f"tables={name}", *QUICK)
    assert done.code == 0, done.err
