"""The script that separates what makes census results differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Result, trained

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_components_of_the_variance(monkeypatch: pytest.MonkeyPatch):
    """Sums of three independent random numbers, of which each has its own spread."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from spread_census import components

    random = np.random.default_rng(0)
    split, seed = random.normal(0, 3, (400, 1)), random.normal(0, 2, (1, 400))
    found = components(pd.DataFrame(split + seed + random.normal(0, 1, (400, 400))))
    assert found["split"] == pytest.approx(3, rel=0.1)
    assert found["seed"] == pytest.approx(2, rel=0.1)
    assert found["rest"] == pytest.approx(1, rel=0.02)
    assert components(pd.DataFrame(np.tile(split[:5], 7)))["seed"] == 0


@pytest.mark.slow
def test_the_table_and_all_runs(script: Callable[..., Result], shared_cache: Path):
    """A training on another split chooses the same epoch, and has the same test AUROCs."""
    small = ["data.source=sample", "trainer.max_epochs=3", "+trainer.limit_train_batches=10"]
    done = script("spread_census", "splits=3", "runs=2", "rows=50,all", "folder=work", "out=out", *small)
    assert done.code == 0, done.err
    runs = pd.read_csv("out/runs.csv").set_index(["split", "seed", "rows"])
    assert len(runs) == 3 * 2 * 2
    assert set(runs["epoch"]) <= {1, 2, 3}
    text = Path("out/spread.md").read_text()
    assert "THE BUNDLED SAMPLE" in text
    mean = runs.xs("all", level="rows")["income_auroc"].mean()
    assert f"| income | all | {mean:.4f} | - |" in text
    for split, seed in ((1, 0), (2, 1)):
        where = [f"data.split_seed={split}", f"seed={seed}"]
        trained(Path("alone"), shared_cache, "experiment=census", *small, *where)
        metrics = json.loads(Path("alone/metrics.json").read_text())
        found = runs.loc[split, seed, "all"]
        assert found["epoch"] == metrics["epoch"]
        for task in ("income", "marital"):
            assert found[f"{task}_auroc"] == pytest.approx(metrics["test"][task]["auroc"], abs=1e-6)
        shutil.rmtree("alone")
    for count, why in (
        ("1", "in split 0, these validation rows have only one label"),
        ("9999", "there are only 5000 validation rows"),
    ):
        done = script("spread_census", f"rows={count},all", "runs=2", "folder=work", "out=other", *small)
        assert (done.code, done.err) == (2, f"error: rows={count}: {why}\n")
        assert not Path("other").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("splits=1", "splits=1: must be an integer of at least 2"),
        ("rows=500", "rows=500: must be numbers of rows and the word all, separated by commas"),
        ("rows=500,500,all", "rows=500,500,all: must not repeat a number"),
        ("rows=x,all", "rows=x,all: must be numbers of rows and the word all, separated by commas"),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], argument: str, message: str):
    done = script("spread_census", argument)
    assert (done.code, done.err) == (2, f"error: {message}\n")
