"""A sweep survives failed and stopped jobs, and does not repeat finished ones."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ["experiment=smoke", "logger=none", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]


def test_the_other_jobs_run_after_a_failed_one(train: Callable):
    command = ["-m", *QUICK, "model.num_experts=2,0,3"]
    result = train(*command)
    assert result.code == 2
    assert "error: model.num_experts=0: must be an integer of at least 1" in result.err
    end = (
        "failed jobs: 1\n"
        "  sweep/1 (experiment=smoke logger=none trainer.max_epochs=1 model.num_experts=0 figures=False"
        " card=False): model.num_experts=0: must be an integer of at least 1\n"
        "to run the unfinished jobs, repeat the command with hydra.sweep.dir=sweep\n"
    )
    assert result.err.endswith(end), result.err
    for job in ("0", "2"):
        assert Path(f"sweep/{job}/metrics.json").is_file()
    # Repeat the sweep after removing one result: only that job and the failed one run.
    shutil.rmtree("sweep/2/checkpoints")
    Path("sweep/2/metrics.json").unlink()
    before = Path("sweep/0/metrics.json").stat().st_mtime_ns
    result = train(*command)
    assert result.code == 2
    assert "sweep/0: has already ended" in result.out
    assert Path("sweep/0/metrics.json").stat().st_mtime_ns == before
    assert Path("sweep/2/metrics.json").is_file()
    # With a valid number of experts, the failed job runs and its note disappears.
    result = train("-m", *QUICK, "model.num_experts=2,1,3")
    assert result.code == 0
    assert not list(Path("sweep").rglob("error.txt"))
    assert Path("sweep/1/metrics.json").is_file()


def test_a_bug_in_a_job_prints_a_traceback_and_the_others_run(
    train: Callable, monkeypatch: pytest.MonkeyPatch
):
    from mmoe.training import run_folder

    start, calls = run_folder.start, []

    def fail_once(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("bug")
        start(*arguments)

    monkeypatch.setattr(run_folder, "start", fail_once)
    result = train("-m", *QUICK, "seed=0,1")
    assert result.code == 2
    assert "Traceback" in result.err
    assert "RuntimeError: bug" in result.err.splitlines()[-2]
    assert Path("sweep/1/metrics.json").is_file()


def test_a_sweep_ends_with_its_folder_and_is_no_run(train: Callable, command: Callable):
    done = train("-m", *QUICK, "seed=0")
    assert done.out.endswith("sweep folder: sweep; python -m mmoe.compare sweep compares its runs\n")
    resumed = train("resume=sweep")
    assert (resumed.code, resumed.err.count("\n")) == (2, 1)
    assert "resume=sweep: holds a sweep; name one of its runs" in resumed.err
    evaluated = command("evaluate")("run=sweep")
    assert (evaluated.code, evaluated.err.count("\n")) == (2, 1)
    assert evaluated.err.endswith("is sweep a sweep? Then name one of its runs\n")


def test_another_sweep_in_the_same_folder_is_refused(train: Callable):
    assert train("-m", *QUICK, "seed=0").code == 0
    result = train("-m", *QUICK, "seed=1")
    assert result.code == 2
    assert "sweep/0: must not hold a run already; name another folder" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers(launcher: str):
    """Two jobs in separate processes; the second fails."""
    options = [f"hydra/launcher={launcher}", *QUICK, "figures=false", "model.num_experts=2,0"]
    command = [sys.executable, "-m", "mmoe.train", "-m", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "failed jobs: 1\n  sweep/1 (" in done.stderr
    assert "): model.num_experts=0: must be an integer of at least 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert Path("sweep/0/metrics.json").is_file()


def test_a_failed_sweep_of_another_command_exits_with_2(command: Callable):
    assert command("extract")("-m", "run=nowhere,there", "replica=0").code == 2


def test_a_sweep_folder_that_cannot_be_made(train: Callable):
    Path("file").touch()
    done = train("-m", *QUICK[:3], "seed=0", "hydra.sweep.dir=file/sweep")
    assert done.code == 2
    assert done.err == "error: hydra.sweep.dir=file/sweep: cannot be a folder (Not a directory)\n"
