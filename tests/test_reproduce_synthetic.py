"""The scripts of the paper's synthetic experiment."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import processes
import pytest
import torch
from conftest import Result, config

from mmoe.data.synthetic_generator import RowGenerator

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = [
    "runs=3", "chunk=3", "cosines=0.5,1", "rates=1e-3", "folder=work", "out=out", "trainer.max_epochs=2",
    "data.rows=64", "data.batch_size=32", "data.eval_rows=50",
]  # fmt: skip


def reproduce(*arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(partial(processes.script, "reproduce_synthetic"), *SMALL, *arguments)


def test_the_calibrated_labels_have_the_published_correlations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import calibrate_synthetic

    chosen = config("experiment=synthetic").data
    options = {key: chosen[key] for key in ("c", "a", "b")}
    cosines = [0.0, 0.5, 0.9, 1.0]
    expected = calibrate_synthetic.correlation(cosines, **options)
    for p, correlation in zip(cosines, expected, strict=True):
        labels = RowGenerator(p, m=2, **options).rows([0], 0, 100_000).labels
        assert torch.corrcoef(labels.T)[0, 1].item() == pytest.approx(correlation, abs=0.012)
    published = calibrate_synthetic.PUBLISHED_CORRELATION
    fitted = calibrate_synthetic.correlation(list(published), **options)
    residuals = fitted - np.array(list(published.values()))
    assert np.abs(residuals).max() <= calibrate_synthetic.PRECISION


@pytest.mark.slow
def test_figures_4_and_5_and_resuming():
    done = reproduce("figure=4", "jobs=2")
    assert done.returncode == 0, done.stderr
    text = Path("out/figure4.md").read_text()
    assert text.strip() in done.stdout
    curves = pd.read_csv("out/figure4.csv")
    assert set(curves["model"]) == {"shared_bottom", "omoe", "mmoe"}
    assert set(curves["step"]) == {2, 4}
    assert (curves["count"] == 3).all()
    last = curves[(curves["step"] == 4) & (curves["model"] == "mmoe") & (curves["cosine"] == 0.5)]
    (line,) = [line for line in text.splitlines() if line.startswith("| MMoE, 8 x 16 | 0.5 |")]
    assert f"| {last['mean'].item():.3f} ± " in line
    assert line.endswith("| 0.085 | 14,834 |")
    assert "gap between p = 0.5 and p = 1" in text
    assert "100%" in done.stderr

    # A stopped run starts again; finished ones do not.
    folders = sorted(path.parent for path in Path("work").glob("*/*/metrics.json"))
    assert len(folders) == 3 * 2
    before = {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in folders}
    (folders[0] / "metrics.json").unlink()
    assert reproduce("figure=5").returncode == 0
    after = {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in folders}
    assert [folder for folder in folders if before[folder] != after[folder]] == folders[:1]
    ends = pd.read_csv("out/figure5.csv")
    mean = ends[(ends["model"] == "mmoe") & (ends["cosine"] == 0.5)]["loss"].mean()
    assert mean == pytest.approx(last["mean"].item(), abs=2e-5)
    assert Path("out/figure5.png").stat().st_size > 10_000

    # Runs with other settings need another folder.
    done = reproduce("figure=5", "data.noise_variance=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: work: holds results of other settings: data, overrides; ")


@pytest.mark.slow
def test_the_trials_choose_the_best_rate():
    options = ["cosines=0.5", "rates=1e-30,1e-2", "trials=2", "runs=3", "chunk=2"]
    done = reproduce("figure=3", *options)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("work").glob("*/*/metrics.json"))) == 4
    assert (pd.read_csv("out/figure3.csv")["count"] == 3).all()
    assert set(pd.read_csv("out/figure3.csv")["rate"]) == {0.01}
    assert Path("out/figure3.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("figure=6", "figure=6: must be 2, 3, 4, 5 or all"),
        ("runs=1", "runs=1: must be an integer of at least 2"),
        ("rates=fast", "rates=fast: must be numbers, separated by commas"),
        ("cosines=2", "data.p=2.0: must be a cosine in [-1, 1]"),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], argument: str, message: str):
    result = script("reproduce_synthetic", *SMALL, "figure=3", argument)
    assert result.code == 2
    assert f"error: {message}\n" in result.err
    assert not Path("out").exists()
