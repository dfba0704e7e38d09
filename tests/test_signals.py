"""Signals that ask a program to end: Ctrl-C, SIGTERM, SIGHUP (a closed terminal) and SLURM's requeue."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import processes
import pytest
import torch
from conftest import OPTIONS
from test_resume import assert_equal_runs, stopped, train_until

from mmoe.cli.exits import errors_on_one_line
from mmoe.cli.overrides import quote_override
from mmoe.train import main as train_main

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def train_until_call(module: str, name: str, number: int) -> None:
    """Train, and raise a signal when a function of a module is called."""
    call = getattr(import_module(module), name)

    def stop(*arguments: object, **options: object) -> object:
        signal.raise_signal(number)
        return call(*arguments, **options)

    setattr(import_module(module), name, stop)
    train_main()


def called(module: str, name: str, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(partial(train_until_call, module, name, number), *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_in_training_saves_and_says_how_to_resume(train: Callable, whole: Path, number: int):
    done = stopped(50, number, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    assert done.returncode == CODES[number]
    assert done.stdout.endswith("stopped; resume with: python -m mmoe.train resume=cut\n")
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
        assert "stopped; resume with: python -m mmoe.train resume=cut\n" in done.stdout
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
def test_a_signal_ends_a_sweep_that_can_be_resumed(train: Callable, number: int):
    sweep = ["-m", *OPTIONS, "trainer.max_epochs=1", "seed=0,1", "figures=false", "card=false"]
    sweep.append("hydra.sweep.dir=cut")
    done = stopped(50, number, *sweep)
    assert done.returncode == CODES[number]
    assert "resume with: python -m mmoe.train resume=cut/0\n" in done.stdout
    assert not Path("cut/1").exists()
    assert train(*sweep).code == 0
    assert train(*sweep[:-1], "hydra.sweep.dir=whole").code == 0
    for job in ("0", "1"):
        assert_equal_runs(Path("whole", job), Path("cut", job))


def two_signals() -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_stops_at_once():
    done = processes.run(partial(train_until, {1: two_signals}), *OPTIONS, "hydra.run.dir=cut")
    assert done.returncode == 143
    assert not Path("cut/checkpoints").exists()
    assert "resume with" in done.stdout


ODD = ["it's", 'say "x"', "ünï, {x}", "$HOME", "a\\", "1e3", "null"]  # names of folders


@pytest.mark.parametrize("name", ["a=b c", *(pytest.param(name, marks=pytest.mark.slow) for name in ODD)])
def test_the_printed_command_can_be_pasted(train: Callable, whole: Path, name: str):
    folder = quote_override("hydra.run.dir", name)
    done = stopped(50, signal.SIGTERM, *OPTIONS, "trainer.max_epochs=3", folder)
    assert done.returncode == 143, done.stderr
    assert Path(name).is_dir()
    command = done.stdout.split("resume with: ")[1].strip()
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert_equal_runs(whole, Path(name))


@pytest.mark.slow
def test_slurms_requeue_signal_is_lightnings(whole: Path, monkeypatch: pytest.MonkeyPatch):
    """Lightning saves at the signal and asks SLURM to requeue the job. The second start resumes the run."""
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
    # The signal comes after 40 steps, and the end of the job's time after 45.
    steps = {
        step: partial(signal.raise_signal, n) for step, n in ((40, signal.SIGUSR1), (45, signal.SIGKILL))
    }
    done = processes.run(partial(train_until, steps), *options)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("requeued").read_text() == "requeue 7\n"
    assert Path("cut/hpc_ckpt_1.ckpt").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert processes.run(train_main, *options).returncode == 0
    assert_equal_runs(whole, Path("cut"))
    assert not list(Path("cut").glob("hpc*"))


RUN = "commands.run_command('waits', env={'PYTHONPATH': FOLDER})"
IN_THREADS = f"commands.run_in_threads([lambda: {RUN}] * 3, 2)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("program", "count"), [(RUN, 1), (IN_THREADS, 2)], ids=["one", "threads"])
def test_a_script_that_is_ended_ends_its_commands(tmp_path: Path, program: str, count: int, number: int):
    """Otherwise the commands would go on, beside those of the next start of the script."""
    package = tmp_path / "fake/mmoe"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "waits.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    program = f"import commands; {program}".replace("FOLDER", repr(str(package.parent)))
    environment = os.environ | {"PYTHONPATH": str(processes.SCRIPTS)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        children = [int(process.stdout.readline()) for _ in range(count)]
        process.send_signal(number)
        assert process.wait(20) == CODES[number]
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
