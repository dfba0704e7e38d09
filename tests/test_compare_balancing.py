"""The comparison of balancing strategies and of MMoE's descendants."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result


@pytest.mark.slow
def test_contestants_are_compared_with_constant_weights(script: Callable[..., Result]):
    options = ["datasets=census", "trials=1", "seeds=2", "out=out", "data.source=sample"]
    assert script("compare_balancing", "contestants=uncertainty,stem,esmm", *options).code == 0
    runs = pd.read_csv("out/census.csv")
    assert list(runs["contestant"].unique()) == ["constant", "uncertainty", "stem"]  # esmm needs a funnel
    assert runs.groupby(["contestant", "task"]).size().eq(2).all()
    assert runs["value"].between(0.5, 1).all()
    text = Path("out/balancing.md").read_text()
    assert "| constant | - | " in text
    assert Path("out/balancing.png").stat().st_size > 5000


def test_finished_contestants_are_not_computed_again(
    script: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    results = Path(__file__).parent.parent / "docs/results/balancing"
    shutil.copytree(results, "out")
    Path("out/balancing.md").unlink()
    monkeypatch.setenv("MMOE_TABLES_DIR", "tables")  # a folder that does not exist, so no training can start
    assert script("compare_balancing", "datasets=hillstrom", "out=out").code == 0
    assert Path("out/balancing.md").read_text() == (results / "balancing.md").read_text()
    Path("out/costs.csv").write_text("contestant,256,1024\nconstant,1.0,1.0\npcgrad,2.0,2.0\n")
    assert script("compare_balancing", "datasets=hillstrom", "out=out").code == 0
    text = Path("out/balancing.md").read_text()
    assert "| contestant | cost of a step: 256, 1024 | parameters |" in text
    assert "| pcgrad | 2.0, 2.0 | " in text
    assert "| uncertainty | -, - | " in text
    done = script("compare_balancing", "datasets=hillstrom", "out=out", "trials=11", "folder=other")
    assert done.code == 2
    assert done.err.startswith("error: out: holds results of other settings: trials; ")


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
