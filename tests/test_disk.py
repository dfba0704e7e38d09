"""A disk that is full or read-only: one line, exit code 3, and existing files stay whole."""

import ctypes
import re
import resource
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import processes
import pytest
from conftest import OPTIONS
from test_resume import assert_equal_runs, train_until

from mmoe.cli.exits import errors_on_one_line
from mmoe.data.census_files import SAMPLE_DIR, find_census_files
from mmoe.evaluate import main as evaluate_main
from mmoe.predict import main as predict_main
from mmoe.train import main as train_main
from mmoe.training.checkpoints import load as load_checkpoint

ROWS = SAMPLE_DIR / "census-income.test.gz"


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey_permissions() -> None:
    """Give up root's right to write anywhere, which other users do not have."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface; this process
    capabilities = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, capabilities)
    capabilities[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE, in the effective set
    libc.capset(header, capabilities)


def as_anyone(main: Callable[[], object], *arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(main, *arguments, before=obey_permissions)


@pytest.fixture
def locked() -> Path:
    """A read-only directory."""
    folder = Path("locked")
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0o555)
    return folder


def test_a_full_disk_ends_a_training_that_can_be_resumed(train: Callable, whole: Path):
    full = partial(train_until, {100: partial(limit_files, 5000)})
    done = processes.run(full, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    assert done.returncode == 3
    why = "File too large; files written earlier are complete"
    assert done.stderr == f"error: cut/checkpoints/last.ckpt: {why}\n"
    written = list(Path("cut").rglob("*"))
    assert not list(Path("cut").rglob(".*"))
    assert Path("cut/checkpoints/best.ckpt") in written
    for path in Path("cut/checkpoints").iterdir():
        load_checkpoint(path)
    assert train("resume=cut").code == 0
    assert_equal_runs(whole, Path("cut"))


def test_a_full_disk_before_the_start(own_cache: Path):
    done = processes.run(train_main, *OPTIONS, before=partial(limit_files, 1000))
    assert done.returncode == 3
    assert re.fullmatch(
        r"error: cache/census-[\w-]+\.npz: File too large; files written earlier are complete",
        done.stderr.splitlines()[-1],
    )
    assert not list(Path().glob("runs/*"))
    assert [path.suffix for path in Path("cache").iterdir()] == [".lock"]


def test_a_read_only_folder(locked: Path):
    for folder in ("locked", "locked/run"):
        done = as_anyone(train_main, *OPTIONS, f"hydra.run.dir={folder}")
        assert done.returncode == 3
        assert done.stderr.startswith(f"error: {folder}")
        assert done.stderr.endswith(": Permission denied; files written earlier are complete\n")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_read_only_run_folder(smoke_run: Path, locked: Path):
    (Path("run")).symlink_to(smoke_run)
    smoke_run.chmod(0o555)
    try:
        done = as_anyone(evaluate_main, "run=run")
    finally:
        smoke_run.chmod(0o755)
    assert done.returncode == 3
    assert done.stderr == (
        "error: run/evaluation_test_best.json: Permission denied; files written earlier are complete\n"
    )
    done = as_anyone(predict_main, "run=run", f"input={ROWS}", "output=locked/scores.parquet")
    assert done.returncode == 3
    assert "error: locked/scores.parquet: Permission denied" in done.stderr


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv", "scores.csv.gz"])
def test_predictions_that_do_not_fit(smoke_run: Path, name: str):
    arguments = [f"run={smoke_run}", f"input={ROWS}", f"output=out/{name}"]
    done = processes.run(predict_main, *arguments, before=partial(limit_files, 1000))
    assert done.returncode == 3
    assert f"error: out/{name}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("out").iterdir())


@pytest.mark.slow
def test_a_read_only_cache(locked: Path):
    for folder in ("locked", "locked/cache"):
        done = as_anyone(train_main, *OPTIONS, f"data.cache_dir={folder}", "hydra.run.dir=run")
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith(f"error: {folder}")
        assert done.stderr.endswith(": Permission denied; files written earlier are complete\n")
        assert done.stderr.count("\n") == 1
        assert not Path("run").exists()


@pytest.mark.slow
def test_a_warm_cache_may_be_read_only(train: Callable):
    arguments = [*OPTIONS, "trainer.max_epochs=1", "data.cache_dir=warm"]
    assert train(*arguments, "hydra.run.dir=first").code == 0
    for path in (*Path("warm").iterdir(), Path("warm")):
        if path.suffix == ".lock":
            path.unlink()
        else:
            path.chmod(path.stat().st_mode & 0o555)
    done = as_anyone(train_main, *arguments, "hydra.run.dir=second")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(Path("first"), Path("second"))


def print_files(source: str, cache: Path) -> None:
    with errors_on_one_line():
        print(*find_census_files(None, source, "http://127.0.0.1:1/", cache))


def test_downloaded_files_in_a_read_only_cache(locked: Path):
    locked.chmod(0o755)
    (locked / "census-income").mkdir()
    for name in ("census-income.data.gz", "census-income.test.gz"):
        (locked / "census-income" / name).touch()
    locked.chmod(0o555)
    done = as_anyone(partial(print_files, "official", Path("locked")))
    assert done.stdout.startswith("locked/census-income/census-income.data.gz locked"), done.stderr


def test_a_download_into_a_read_only_cache(locked: Path):
    done = as_anyone(partial(print_files, "auto", Path("locked/cache")))
    assert done.returncode == 3
    assert done.stderr == "error: locked/cache: Permission denied; files written earlier are complete\n"
