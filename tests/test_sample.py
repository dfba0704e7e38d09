"""The bundled sample: official format, small, synthetic."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Result

from mmoe import load
from mmoe.data.census import read
from mmoe.data.census_files import COLUMNS, NUMERIC, SAMPLE_DIR

ROOT = Path(__file__).parents[1]
NAMES = ("census-income.data.gz", "census-income.test.gz")


def test_number_of_rows_and_bytes():
    assert [len(read(SAMPLE_DIR / name)) for name in NAMES] == [20_000, 10_000]
    assert sum((SAMPLE_DIR / name).stat().st_size for name in NAMES) <= 1_000_000


def test_columns_depend_on_each_other():
    frame = pd.concat([read(SAMPLE_DIR / name) for name in NAMES])
    children = frame["age"] < 15
    assert (frame.loc[children, "marital_status"] == "Never married").mean() > 0.95
    managers = frame["major_occupation"] == "Executive admin and managerial"
    rich = frame["income"] == "50000+."
    assert rich[children].mean() < rich.mean() / 2
    assert rich[managers].mean() > 2 * rich.mean()


def test_every_column_varies_and_numbers_are_in_the_official_range():
    frame = read(SAMPLE_DIR / NAMES[0])
    assert all(frame[column].nunique() > 1 for column in COLUMNS)
    assert set(frame["year"]) == {94.0, 95.0}
    assert frame["age"].between(0, 90).all()
    integers = [c for c in NUMERIC if c != "instance_weight"]
    assert all((frame[c] == frame[c].round()).all() for c in integers)


@pytest.mark.slow
def test_no_row_is_real_and_distributions_are_close(real_dir: Path):
    real = pd.concat([read(real_dir / name) for name in NAMES])
    sample = pd.concat([read(SAMPLE_DIR / name) for name in NAMES])
    texts = [set(frame.astype(str).agg(",".join, axis=1)) for frame in (real, sample)]
    assert not texts[0] & texts[1]
    for column in COLUMNS:
        if column in NUMERIC:
            assert abs(sample[column].mean() - real[column].mean()) < 0.1 * real[column].std(), column
        else:
            shares = [frame[column].value_counts(normalize=True) for frame in (sample, real)]
            assert shares[0].sub(shares[1], fill_value=0).abs().sum() / 2 < 0.03, column


@pytest.mark.slow
def test_a_network_learns_as_from_real_rows(real_dir: Path, train: Callable, tmp_path: Path):
    """A network that was trained on the sample is nearly as good as one that was trained on real rows."""
    subset = tmp_path / "subset"
    subset.mkdir()
    for name, count in zip(NAMES, (20_000, 10_000), strict=True):
        lines = gzip.decompress((real_dir / name).read_bytes()).splitlines(keepends=True)
        chosen = np.random.default_rng(0).choice(len(lines), count, replace=False)
        (subset / name).write_bytes(gzip.compress(b"".join(lines[i] for i in chosen)))
    areas = {}
    for name, source in (("sample", "data.source=sample"), ("real", f"data.dir={subset}")):
        assert (
            train("experiment=census", source, "replicas=3", "logger=none", f"hydra.run.dir={name}").code == 0
        )
        test = load(name).metrics["test"]
        areas[name] = [test[task]["auroc"] for task in ("income", "marital")]
    assert abs(areas["sample"][0] - areas["real"][0]) < 0.015
    assert abs(areas["sample"][1] - areas["real"][1]) < 0.003
    assert train("experiment=census", "data.source=sample", "logger=none", "hydra.run.dir=one").code == 0
    (found,) = load("one").evaluate(data={"dir": str(real_dir)}, resamples=0)["checkpoints"]
    assert found["metrics"]["income"]["auroc"] >= 0.92
    assert found["metrics"]["marital"]["auroc"] >= 0.985


@pytest.mark.slow
def test_the_script_makes_the_committed_files(real_dir: Path, tmp_path: Path):
    script = [sys.executable, str(ROOT / "scripts/make_sample.py"), f"data.dir={real_dir}", f"out={tmp_path}"]
    subprocess.run(script, check=True, capture_output=True)
    for name in NAMES:
        made, committed = (gzip.decompress((root / name).read_bytes()) for root in (tmp_path, SAMPLE_DIR))
        assert made == committed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.dir: must be the folder of the official files"),
        (["data.dir=nowhere"], "data.dir=nowhere: "),
        (["data.dir=x", "seed=1"], "seed=1: must be data.dir=... or out=..."),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], arguments: list[str], message: str):
    done = script("make_sample", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: {message}")


def test_lines_have_the_official_format():
    text = gzip.decompress((SAMPLE_DIR / NAMES[0]).read_bytes()).decode("latin-1")
    assert text.endswith("\n")
    assert np.all([line.count(", ") == 41 for line in text.splitlines()])
    assert {line.rsplit(", ", 1)[1] for line in text.splitlines()} == {"- 50000.", "50000+."}
