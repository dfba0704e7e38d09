"""The comparison with LightGBM, on the bundled sample."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result
from scipy.stats import mannwhitneyu

QUICK = [
    "features=paper", "runs=2", "trials=1", "rounds=5", "threads=1", "folder=work", "out=out", "sample=true",
    "data.source=sample", "trainer.max_epochs=1", "+trainer.limit_train_batches=2",
]  # fmt: skip


@pytest.mark.slow
def test_table_and_runs(script: Callable[..., Result]):
    done = script("compare_gbdt", *QUICK)
    assert done.code == 0, done.err
    text = Path("out/gbdt.md").read_text()
    assert "THE BUNDLED SAMPLE" in text
    assert text in done.out
    found = pd.read_csv("out/runs.csv")
    assert found.groupby("model")["run"].apply(list).tolist() == [[0, 1]] * 4
    trees = found[found["model"].str.startswith("LightGBM")].set_index("run")["income"]
    best = found[found["model"] == "mmoe, census_best"].set_index("run")["income"]
    difference = best - trees
    half = 12.706205 * difference.std() / 2**0.5  # Student's t with 1 degree of freedom
    (line,) = [line for line in text.splitlines() if "| mmoe, census_best |" in line]
    assert f"| {best.mean():.4f} ± " in line
    assert f"| {difference.mean():+.4f} ± {half:.4f} |" in line

    # The table's number is the one in the run folder, and every run had its own split.
    metrics = json.loads(Path("work/paper/census_best-1/metrics.json").read_text())
    assert best[1] == pytest.approx(metrics["test"]["income"]["auroc"], abs=1e-6)
    rows = [pd.read_parquet(f"work/paper/census_best-{n}/predictions.parquet") for n in (0, 1)]
    assert set(rows[0].iloc[:, 0]) != set(rows[1].iloc[:, 0])
    positive = rows[1]["income_label"] == 1
    probability = rows[1]["income_probability"]
    pairs = positive.sum() * (~positive).sum()  # AUROC is the share of pairs in the right order
    auroc = mannwhitneyu(probability[positive], probability[~positive]).statistic / pairs
    assert auroc == pytest.approx(best[1], abs=1e-6)

    # A stopped training starts again; finished ones do not.
    Path("work/paper/census-1.json").unlink()
    Path("work/paper/census-1/metrics.json").unlink()
    before = Path("work/paper/lightgbm.json").stat().st_mtime_ns
    again = script("compare_gbdt", *QUICK)
    assert again.code == 0, again.err
    assert pd.read_csv("out/runs.csv")[["income", "marital"]].equals(found[["income", "marital"]])
    assert Path("work/paper/lightgbm.json").stat().st_mtime_ns == before

    done = script("compare_gbdt", *QUICK, "trials=2", "learner.optimizer.lr=0.1")
    assert done.code == 2
    settings = "trials, census, census_best, census_best_ensemble, overrides"
    assert done.err.startswith(f"error: work: holds results of other settings: {settings}; ")


def test_mistakes_are_reported_in_one_line(script: Callable[..., Result]):
    done = script("compare_gbdt", "runs=1")
    assert (done.code, done.err) == (2, "error: runs=1: must be an integer of at least 2\n")
    done = script("compare_gbdt", "features=none", "folder=work")
    assert (done.code, done.err) == (2, "error: features=none: must be some of all, paddlerec, paper\n")
    assert not Path("work").exists()
