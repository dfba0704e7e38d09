"""The comparison of balancing strategies and of MMoE's descendants."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result


@pytest.mark.slow
def test_contestants_are_compared_with_constant_weights(script: Callable[..., Result]):
    options = ["datasets=census", "trials=1", "seeds=2", "out=out", "data.source=sample"]
    assert script("compare_balancing", "contestants=uncertainty,stem,esmm", *options).code == 0
    runs = pd.read_csv("out/runs.csv")
    assert list(runs["contestant"].unique()) == ["constant", "uncertainty", "stem"]  # esmm needs a funnel
    assert runs.groupby(["contestant", "task"]).size().eq(2).all()
    assert runs["value"].between(0.5, 1).all()
    text = Path("out/balancing.md").read_text()
    assert "| constant | 0.9" in text
    assert Path("out/balancing.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["datasets=none"], "datasets=none: must be some of census"),
        (["contestants=none"], "contestants=none: must be some of constant"),
        (["datasets=hillstrom"], "MMOE_TABLES_DIR: must be set"),
        (["seeds=1"], "seeds=1: must be an integer of at least 2"),
    ],
)
def test_wrong_options_are_refused(
    script: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.delenv("MMOE_TABLES_DIR", raising=False)
    done = script("compare_balancing", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
