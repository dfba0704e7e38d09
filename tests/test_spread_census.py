"""The script that separates what makes census results differ."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Result

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
def test_the_table_and_all_runs(script: Callable[..., Result]):
    small = ["splits=2", "runs=3", "rows=50,all", "folder=work", "out=out", "data.source=sample"]
    done = script("spread_census", *small, "trainer.max_epochs=2", "+trainer.limit_train_batches=10")
    assert done.code == 0, done.err
    runs = pd.read_csv("out/runs.csv")
    assert len(runs) == 2 * 2 * 3
    text = Path("out/spread.md").read_text()
    assert "THE BUNDLED SAMPLE" in text
    mean = runs.loc[runs["rows"] == "all", "income_auroc"].mean()
    assert f"| income | all | {mean:.4f} | - |" in text
    by_seed = runs[(runs["rows"] == "all") & (runs["split"] == 0)].set_index("seed")
    assert by_seed["income_auroc"].nunique() == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("splits=1", "splits=1: must be an integer of at least 2"),
        ("rows=500", "rows=500: must be numbers of rows and the word all, separated by commas"),
        ("rows=x,all", "rows=x,all: must be numbers of rows and the word all, separated by commas"),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], argument: str, message: str):
    done = script("spread_census", argument)
    assert (done.code, done.err) == (2, f"error: {message}\n")
