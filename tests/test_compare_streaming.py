"""The comparison of training from disk and from memory."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result


@pytest.mark.slow
def test_both_kinds_are_trained_with_the_same_seeds(script: Callable[..., Result], census_dir: Path):
    options = ["rows=600", "runs=2", "out=out", f"data.dir={census_dir}"]
    assert script("compare_streaming", *options).code == 0
    runs = pd.read_csv("out/runs.csv")
    assert runs.groupby(["order", "from"])["seed"].apply(list).tolist() == [[0, 1]] * 4
    assert runs["income/auroc"].between(0, 1).all()
    lines = Path("out/streaming.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| random"] * 2 + ["| by age"] * 2


def test_the_folder_of_the_rows_must_be_given(script: Callable[..., Result]):
    done = script("compare_streaming", "rows=600")
    assert (done.code, done.err) == (2, "error: data.dir: must be the folder of the official files\n")
