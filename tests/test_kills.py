"""A network, replicas and a sweep are killed at random moments, and resume to the bit.

The environment variable MMOE_KILLS is the number of kills for each of the three.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import processes
import pytest
from conftest import OPTIONS
from test_resume import assert_equal_runs

from mmoe.train import main

KILLS = int(os.environ.get("MMOE_KILLS", "4"))
KINDS = {
    "network": [*OPTIONS, "trainer.max_epochs=25", "callbacks.early_stopping=null"],
    "replicas": [*OPTIONS, "trainer.max_epochs=12", "callbacks.early_stopping=null", "replicas=3"],
    "sweep": ["-m", *OPTIONS, "trainer.max_epochs=5", "seed=0,1,2"],
}


def arguments(kind: str, folder: Path) -> list[str]:
    """The arguments that start a run, or resume it."""
    if (folder / "config.yaml").exists():
        return [f"resume={folder}"]
    return [*KINDS[kind], f"hydra.{'sweep' if kind == 'sweep' else 'run'}.dir={folder}"]


def assert_ended_alike(kind: str, whole: Path, cut: Path) -> None:
    """Every run equals the one that was never stopped, and no scratch file or lock is left."""
    for job in ("0", "1", "2") if kind == "sweep" else (".",):
        assert_equal_runs(whole / job, cut / job)
    assert not list(cut.rglob(".*"))
    assert not list(cut.rglob("run.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments(kind: str):
    whole, cut = Path("whole"), Path("cut")
    started = time.monotonic()
    assert processes.run(main, *arguments(kind, whole)).returncode == 0
    seconds = time.monotonic() - started
    draws, kills, ended = random.Random(kind), 0, 0
    while kills < KILLS:
        process = processes.start(main, *arguments(kind, cut), out=Path("out"), err=Path("err"))
        process.join(draws.uniform(0, seconds))
        (process.kill if kills % 2 else process.terminate)()
        process.join()
        error = Path("err").read_text() if Path("err").exists() else ""
        if process.exitcode == 0 or "the run has already ended" in error:  # the run ended before the signal
            assert_ended_alike(kind, whole, cut)
            shutil.rmtree(cut)
            ended += 1
        else:
            assert process.exitcode in (143, -signal.SIGTERM, -signal.SIGKILL), error
            kills += 1
    done = processes.run(main, *arguments(kind, cut))
    assert done.returncode == 0 or "the run has already ended" in done.stderr, done.stderr
    assert_ended_alike(kind, whole, cut)
    print(f"{kind}: {kills} kills, {ended + 1} runs that ended, {seconds:.0f} s each")
