"""The comparison on tables of other people: a small made-up one, and the real ones where they are."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Result

QUICK = ["runs=2", "trials=1", "folder=work", "out=out", "trainer.max_epochs=1"]


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
@pytest.mark.parametrize("name", ["hillstrom", "datacar", "ai4i"])
def test_the_configurations_fit_the_real_tables(script: Callable[..., Result], name: str):
    if not os.environ.get("MMOE_TABLES_DIR"):
        pytest.skip("MMOE_TABLES_DIR is not set: no tables of other people here")
    done = script("compare_tables", f"tables={name}", *QUICK)
    assert done.code == 0, done.err
