"""The script behind README's table "Results", on the bundled sample."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result
from processes import SCRIPTS

from mmoe import load

QUICK = [
    "experiments=census,census_paddlerec,census_education", "replicas=2", "folder=work", "out=out",
    "sample=true", "data.source=sample", "trainer.max_epochs=2", "+trainer.limit_train_batches=3",
]  # fmt: skip


@pytest.mark.slow
def test_table_runs_and_figure(script: Callable[..., Result]):
    done = script("results", *QUICK)
    assert done.code == 0, done.err
    text = Path("out/results.md").read_text()
    assert "THE BUNDLED SAMPLE" in text
    assert text in done.out
    runs = pd.read_csv("out/runs.csv")
    assert runs.groupby("run")["seed"].apply(list).to_dict() == {
        "census": [0, 1], "census_education": [0, 1], "census_paddlerec": [0]
    }  # fmt: skip
    metrics = load("work/census").metrics
    half = metrics["half_interval"]["test"]["income"]["auroc"]
    assert f"| `experiment=census` | {metrics['test']['income']['auroc']:.4f} ± {half:.4f} | - |" in text
    education = load("work/census_education").metrics["test"]["education"]["auroc"]
    assert f"| `experiment=census_education` | - | {education:.4f} ± " in text
    (last,) = load("work/census_paddlerec").evaluate(checkpoint="last", resamples=0)["checkpoints"]
    assert f"After epoch 2 they are {last['metrics']['income']['auroc']:.4f} (income) and " in text
    assert Path("out/paddlerec.png").stat().st_size > 10_000

    # A run that has ended is used again.
    before = Path("work/census/metrics.json").stat().st_mtime_ns
    assert script("results", *QUICK).code == 0
    assert Path("work/census/metrics.json").stat().st_mtime_ns == before


def test_a_command_that_fails_ends_a_script_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from commands import run_command

    with pytest.raises(SystemExit) as end:
        run_command("train", "experiment=nowhere")
    assert end.value.code == 2
    assert "Could not find 'experiment/nowhere'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("experiments=census,none", "experiments=census,none: must be some of census, census_paper"),
        ("replicas=1", "replicas=1: must be an integer of at least 2"),
        ("sample=maybe", "sample=maybe: must be true or false"),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], argument: str, message: str):
    done = script("results", argument)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
