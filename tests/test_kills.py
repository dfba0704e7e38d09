"""Kills at random moments, of a network, of replicas and of a sweep: each goes on, to the bit.

MMOE_KILLS is the number of kills of each; 60 kills in all are MMOE_KILLS=20.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import OPTIONS, assert_equal_runs

KILLS = int(os.environ.get("MMOE_KILLS", "4"))
KINDS = {
    "network": [*OPTIONS, "trainer.max_epochs=25", "callbacks.early_stopping=null"],
    "replicas": [*OPTIONS, "trainer.max_epochs=12", "callbacks.early_stopping=null", "replicas=3"],
    "sweep": ["-m", *OPTIONS, "trainer.max_epochs=5", "seed=0,1,2"],
}


def command(kind: str, folder: Path) -> list[str]:
    """What starts a run, or goes on with it."""
    if (folder / "config.yaml").exists():
        arguments = [f"resume={folder}"]
    else:
        arguments = [*KINDS[kind], f"hydra.{'sweep' if kind == 'sweep' else 'run'}.dir={folder}"]
    return [sys.executable, "-m", "mmoe.train", *arguments]


def assert_ended_alike(kind: str, whole: Path, cut: Path) -> None:
    """Every run is that which was never stopped, and nothing is left over."""
    for job in ("0", "1", "2") if kind == "sweep" else (".",):
        assert_equal_runs(whole / job, cut / job)
    assert not list(cut.rglob(".*"))
    assert not list(cut.rglob("run.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments(kind: str):
    whole, cut = Path("whole"), Path("cut")
    started = time.monotonic()
    subprocess.run(command(kind, whole), check=True, capture_output=True)
    seconds = time.monotonic() - started
    draws, kills, ended = random.Random(kind), 0, 0
    while kills < KILLS:
        with subprocess.Popen(
            command(kind, cut), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            time.sleep(draws.uniform(0, seconds))
            process.send_signal(signal.SIGKILL if kills % 2 else signal.SIGTERM)
            error = process.stderr.read()
        if process.returncode == 0 or "the run has already ended" in error:  # before the signal
            assert_ended_alike(kind, whole, cut)
            shutil.rmtree(cut)
            ended += 1
        else:
            assert process.returncode in (143, -signal.SIGTERM, -signal.SIGKILL), error
            kills += 1
    done = subprocess.run(command(kind, cut), capture_output=True, text=True)
    assert done.returncode == 0 or "the run has already ended" in done.stderr, done.stderr
    assert_ended_alike(kind, whole, cut)
    print(f"{kind}: {kills} kills, {ended + 1} runs that ended, {seconds:.0f} s each")
