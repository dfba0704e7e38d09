"""What asks a program to end: Ctrl-C, SIGTERM, SIGHUP (a closed terminal), and SLURM's requeue signal."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_resume import OPTIONS, assert_equal_runs, stopped

from mmoe.cli import errors_on_one_line
from mmoe.training.resume import quote_override

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# Raises a signal when a function is called: module, name, number.
CALLED = """
import importlib, os, sys
module, name, number = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
module = importlib.import_module(module)
call = getattr(module, name)
def stop(*arguments, **options):
    os.kill(os.getpid(), number)
    return call(*arguments, **options)
setattr(module, name, stop)
from mmoe import train
train.main()
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped: 3 epochs of 79 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    arguments = [*OPTIONS, "trainer.max_epochs=3", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "mmoe.train", *arguments], check=True, capture_output=True)
    return folder


def called(module: str, name: str, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CALLED, module, name, str(int(number)), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_in_training_saves_and_says_how_to_go_on(train: Callable, whole: Path, number: int):
    done = stopped(50, number, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    assert done.returncode == CODES[number]
    assert done.stdout.endswith("stopped; continue with: python -m mmoe.train resume=cut\n")
    assert done.stderr == ""
    assert torch.load("cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 50
    assert train("resume=cut").code == 0
    assert_equal_runs(whole, Path("cut"))


@pytest.mark.parametrize("number", CODES)
def test_an_error_of_a_clean_up_does_not_hide_the_signal(number: int):
    @errors_on_one_line()
    def interrupted() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            raise KeyError("a library's state that the signal left half-changed")

    with pytest.raises(SystemExit) as end:
        interrupted()
    assert end.value.code == CODES[number]


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("module", "name", "begun"),
    [
        ("mmoe.data.cache", "load_or_build", False),
        ("mmoe.training.stages", "test_predictions", True),
        ("mmoe.analysis.figures", "write_figures", True),
    ],
)
def test_a_signal_at_another_time(
    train: Callable, whole: Path, module: str, name: str, begun: bool, number: int
):
    options = [*OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut"]
    done = called(module, name, number, *options)
    assert done.returncode == CODES[number], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path().rglob(".*"))
    assert not list(Path().rglob("run.lock"))
    assert Path("cut").exists() == begun
    if begun:
        assert "stopped; continue with: python -m mmoe.train resume=cut\n" in done.stdout
    result = train("resume=cut") if begun else train(*options, "figures=true")
    assert result.code == 0, result.err
    assert_equal_runs(whole, Path("cut"))
    assert Path("cut/figures/roc.png").exists()


@pytest.mark.slow
def test_a_run_outlives_its_terminal_under_nohup(whole: Path):
    command = [sys.executable, "-m", "mmoe.train", *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut"]
    with subprocess.Popen(
        ["nohup", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not Path("cut/checkpoints/last.ckpt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 0
    assert_equal_runs(whole, Path("cut"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_sweep_which_goes_on(train: Callable, number: int):
    sweep = ["-m", *OPTIONS, "trainer.max_epochs=1", "seed=0,1", "figures=false", "hydra.sweep.dir=cut"]
    done = stopped(50, number, *sweep)
    assert done.returncode == CODES[number]
    assert "continue with: python -m mmoe.train resume=cut/0\n" in done.stdout
    assert not Path("cut/1").exists()
    assert train(*sweep).code == 0
    assert train(*sweep[:-1], "hydra.sweep.dir=whole").code == 0
    for job in ("0", "1"):
        assert_equal_runs(Path("whole", job), Path("cut", job))


def test_a_second_signal_stops_at_once():
    script = """
import os, signal, sys
from mmoe import train
from mmoe.training import checkpoint_callbacks
def stop(self, trainer, *rest):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
checkpoint_callbacks.Last.on_train_batch_end = stop
train.main()
"""
    command = [sys.executable, "-c", script, *OPTIONS, "hydra.run.dir=cut"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 143
    assert not Path("cut/checkpoints").exists()
    assert "continue with" in done.stdout


ODD = ["it's", 'say "x"', "ünï, {x}", "$HOME", "a\\", "1e3", "null"]  # names of folders


@pytest.mark.parametrize("name", ["a=b c", *(pytest.param(name, marks=pytest.mark.slow) for name in ODD)])
def test_the_printed_command_can_be_pasted(train: Callable, whole: Path, name: str):
    folder = quote_override("hydra.run.dir", name)
    done = stopped(50, signal.SIGTERM, *OPTIONS, "trainer.max_epochs=3", folder)
    assert done.returncode == 143, done.stderr
    assert Path(name).is_dir()
    command = done.stdout.split("continue with: ")[1].strip()
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert_equal_runs(whole, Path(name))


@pytest.mark.slow
def test_slurms_requeue_signal_is_lightnings(whole: Path, monkeypatch: pytest.MonkeyPatch):
    """Lightning saves at the signal and asks SLURM for another start; that one finds the run and goes on."""
    Path("bin").mkdir()
    tool = Path("bin/scontrol")
    tool.write_text('#!/bin/sh\necho "$@" > requeued\n')
    tool.chmod(0o755)
    for name, value in {
        "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    options = [*OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut"]
    stop = f"import signal; from mmoe import train; {FORTY_STEPS}"
    done = subprocess.run([sys.executable, "-c", stop, *options], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("requeued").read_text() == "requeue 7\n"
    assert Path("cut/hpc_ckpt_1.ckpt").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    subprocess.run([sys.executable, "-m", "mmoe.train", *options], check=True, capture_output=True)
    assert_equal_runs(whole, Path("cut"))
    assert not list(Path("cut").glob("hpc*"))


# The signal after 40 steps, and the end of the job's time after 45.
FORTY_STEPS = """
import os
from mmoe.training import checkpoint_callbacks
after = checkpoint_callbacks.Last.on_train_batch_end
def stop(self, trainer, *rest):
    if trainer.global_step in (40, 45):
        os.kill(os.getpid(), signal.SIGUSR1 if trainer.global_step == 40 else signal.SIGKILL)
    after(self, trainer, *rest)
checkpoint_callbacks.Last.on_train_batch_end = stop
train.main()
"""
