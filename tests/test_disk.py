"""A disk that is full, or must not be written: one line, exit code 3, and what was there stays whole."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_resume import OPTIONS, assert_equal_runs

from mmoe.data.census_files import SAMPLE_DIR
from mmoe.training.checkpoints import load as load_checkpoint

ROWS = SAMPLE_DIR / "census-income.test.gz"
# From a step on, no file may grow beyond a number of bytes.
FULL = """
import resource, sys
from mmoe import train
from mmoe.training import checkpoint_callbacks
step, size = int(sys.argv.pop(1)), int(sys.argv.pop(1))
after = checkpoint_callbacks.Last.on_train_batch_end
def fill(self, trainer, *rest):
    if trainer.global_step == step:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    after(self, trainer, *rest)
checkpoint_callbacks.Last.on_train_batch_end = fill
train.main()
"""


def limited(size: int) -> str:
    """A statement after which no file may grow beyond `size` bytes."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"


def obey_permissions() -> None:
    """Give up root's right to write anywhere; others never had it."""
    drop_capability, may_override_permissions = 24, 1
    ctypes.CDLL(None).prctl(drop_capability, may_override_permissions, 0, 0, 0)


def as_anyone(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=obey_permissions)


@pytest.fixture
def locked() -> Path:
    """A directory that must not be written."""
    folder = Path("locked")
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0o555)
    return folder


def test_a_full_disk_ends_a_training_that_can_go_on(train: Callable):
    arguments = [*OPTIONS, "trainer.max_epochs=3"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, "100", "5000", *arguments, "hydra.run.dir=cut"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    why = "File too large; files written earlier are complete"
    assert done.stderr == f"error: cut/checkpoints/last.ckpt: {why}\n"
    written = list(Path("cut").rglob("*"))
    assert not list(Path("cut").rglob(".*"))
    assert Path("cut/checkpoints/best.ckpt") in written
    for path in Path("cut/checkpoints").iterdir():
        load_checkpoint(path)
    assert train("resume=cut").code == 0
    assert train(*arguments, "hydra.run.dir=whole").code == 0
    assert_equal_runs(Path("whole"), Path("cut"))


def test_a_full_disk_before_the_start(own_cache: Path):
    script = f"{limited(1000)} from mmoe import train; train.main()"
    done = subprocess.run([sys.executable, "-c", script, *OPTIONS], capture_output=True, text=True)
    assert done.returncode == 3
    assert re.fullmatch(
        r"error: cache/census-[\w-]+\.npz: File too large; files written earlier are complete",
        done.stderr.splitlines()[-1],
    )
    assert not list(Path().glob("runs/*"))
    assert [path.suffix for path in Path("cache").iterdir()] == [".lock"]


def test_a_folder_that_must_not_be_written(locked: Path):
    for folder in ("locked", "locked/run"):
        done = as_anyone("mmoe.train", *OPTIONS, f"hydra.run.dir={folder}")
        assert done.returncode == 3
        assert done.stderr.startswith(f"error: {folder}")
        assert done.stderr.endswith(": Permission denied; files written earlier are complete\n")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_folder_that_must_not_be_written(smoke_run: Path, locked: Path):
    (Path("run")).symlink_to(smoke_run)
    smoke_run.chmod(0o555)
    try:
        done = as_anyone("mmoe.evaluate", "run=run")
    finally:
        smoke_run.chmod(0o755)
    assert done.returncode == 3
    assert done.stderr == (
        "error: run/evaluation_test_best.json: Permission denied; files written earlier are complete\n"
    )
    done = as_anyone("mmoe.predict", "run=run", f"input={ROWS}", "output=locked/scores.parquet")
    assert done.returncode == 3
    assert "error: locked/scores.parquet: Permission denied" in done.stderr


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv", "scores.csv.gz"])
def test_predictions_that_do_not_fit(smoke_run: Path, name: str):
    script = f"{limited(1000)} from mmoe import predict; predict.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, f"run={smoke_run}", f"input={ROWS}", f"output=out/{name}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert f"error: out/{name}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("out").iterdir())


@pytest.mark.slow
def test_a_cache_that_must_not_be_written(locked: Path):
    for folder in ("locked", "locked/cache"):
        done = as_anyone("mmoe.train", *OPTIONS, f"data.cache_dir={folder}", "hydra.run.dir=run")
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith(f"error: {folder}")
        assert done.stderr.endswith(": Permission denied; files written earlier are complete\n")
        assert done.stderr.count("\n") == 1
        assert not Path("run").exists()


@pytest.mark.slow
def test_a_warm_cache_need_not_be_written(train: Callable):
    arguments = [*OPTIONS, "trainer.max_epochs=1", "data.cache_dir=warm"]
    assert train(*arguments, "hydra.run.dir=first").code == 0
    for path in (*Path("warm").iterdir(), Path("warm")):
        if path.suffix == ".lock":
            path.unlink()
        else:
            path.chmod(path.stat().st_mode & 0o555)
    done = as_anyone("mmoe.train", *arguments, "hydra.run.dir=second")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(Path("first"), Path("second"))


def test_downloaded_files_in_a_cache_that_must_not_be_written(locked: Path):
    locked.chmod(0o755)
    (locked / "census-income").mkdir()
    for name in ("census-income.data.gz", "census-income.test.gz"):
        (locked / "census-income" / name).touch()
    locked.chmod(0o555)
    script = (
        "from pathlib import Path; from mmoe.data.census_files import find_files\n"
        "print(*find_files(None, 'official', 'http://127.0.0.1:1/', Path('locked')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=obey_permissions
    )
    assert done.stdout.startswith("locked/census-income/census-income.data.gz locked"), done.stderr


def test_a_cold_download_in_a_cache_that_must_not_be_written(locked: Path):
    script = (
        "from pathlib import Path; from mmoe.data.census_files import find_files\n"
        "from mmoe.cli import errors_on_one_line\n"
        "with errors_on_one_line(): find_files(None, 'auto', 'http://127.0.0.1:1/', Path('locked/cache'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=obey_permissions
    )
    assert done.returncode == 3
    assert done.stderr == "error: locked/cache: Permission denied; files written earlier are complete\n"
