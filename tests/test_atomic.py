"""Files appear whole or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmoe import atomic
from mmoe.errors import UserError

# Writes half a file, then is killed.
KILLED = """
import os, signal, sys
from pathlib import Path
from mmoe.atomic import write
def to(scratch):
    scratch.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write(Path(sys.argv[1]), to)
"""
# Writes a file, then waits for a line on stdin.
SLOW = """
import sys
from pathlib import Path
from mmoe.atomic import write
def to(scratch):
    scratch.write_text("slow")
    print(flush=True)
    sys.stdin.readline()
write(Path(sys.argv[1]), to)
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def scratch_files(folder: Path) -> list[Path]:
    """The scratch files in a folder and below, also those that are still being written."""
    return sorted(path for path in folder.rglob(".scratch-*") if atomic.SCRATCH.fullmatch(path.name))


def kill_a_writer(path: str) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -signal.SIGKILL


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644), (0, 0o666)])
def test_files_follow_the_umask(mask: int, mode: int):
    Path("old").touch(0o640)
    os.umask(mask)
    for name in ("new", "old"):
        atomic.write(Path(name), lambda scratch: scratch.write_text("text"))
        assert Path(name).stat().st_mode & 0o777 == mode
        assert Path(name).read_text() == "text"


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "run=1 [b]*.2024.parquet", "none"])
def test_the_scratch_file_is_hidden_and_keeps_the_suffixes(name: str):
    found = []
    atomic.write(Path("f") / name, lambda scratch: found.append(scratch) or scratch.write_text("x"))
    (scratch,) = found
    assert scratch.parent == Path("f")
    assert scratch.name.startswith(".")
    assert scratch.name.endswith(name)
    assert [path.name for path in Path("f").iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.csv.gz", "run=1 [b]*.csv"])
def test_the_next_write_removes_the_scratch_file_of_a_killed_writer(name: str):
    path, other = Path("run") / name, Path("run/checkpoints/b.csv")
    kill_a_writer(str(path))
    kill_a_writer(str(other))
    left = scratch_files(Path("run"))
    assert sorted(scratch.read_text() for scratch in left) == ["half", "half"]
    Path("run/.scratch-of-another-program").touch()
    Path("run/.hidden").touch()
    assert scratch_files(Path("run")) == left
    atomic.write(path, lambda scratch: scratch.write_text("whole"))
    (left,) = scratch_files(Path("run"))  # the other file's
    assert left.parent == other.parent
    assert path.read_text() == "whole"
    assert Path("run/.scratch-of-another-program").exists()


def test_remove_abandoned_keeps_files_that_are_being_written():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writer = subprocess.Popen([sys.executable, "-c", SLOW, "run/live.txt"], **pipes)
    writer.stdout.readline()
    live = scratch_files(Path("run"))
    for name in ("run/a.csv", "run/checkpoints/b.ckpt"):
        kill_a_writer(name)
    assert len(scratch_files(Path("run"))) == 3
    atomic.remove_abandoned(Path("run"))
    assert scratch_files(Path("run")) == live
    writer.communicate(b"\n")


@pytest.mark.parametrize("name", ["file/a.txt", "file/f/a.txt", "folder", "x" * 300])
def test_a_path_that_cannot_be_a_file_is_a_user_error(name: str):
    Path("file").touch()
    Path("folder").mkdir()
    with pytest.raises(UserError, match=f"^{name}: cannot be written"):
        atomic.write(Path(name), lambda scratch: scratch.write_text("x"))
    assert not scratch_files(Path())


def test_the_scratch_file_of_a_running_writer_stays():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writer = subprocess.Popen([sys.executable, "-c", SLOW, "a.txt"], **pipes)
    writer.stdout.readline()
    (scratch,) = scratch_files(Path())
    atomic.write(Path("a.txt"), lambda scratch: scratch.write_text("quick"))
    assert Path("a.txt").read_text() == "quick"
    assert scratch.exists()
    writer.communicate(b"\n")
    assert writer.returncode == 0
    assert Path("a.txt").read_text() == "slow"
    assert not scratch_files(Path())


def test_many_processes_write_the_same_file():
    script = (
        "import os; from pathlib import Path; from mmoe.atomic import write\n"
        "for _ in range(100): write(Path('a.txt'), lambda scratch: scratch.write_text(f'{os.getpid():>9}'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    assert int(Path("a.txt").read_text()) in [writer.pid for writer in writers]
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


def test_a_scratch_file_removed_before_its_lock_is_created_again(monkeypatch: pytest.MonkeyPatch):
    flock, removed = atomic.fcntl.flock, []

    def lose_the_race(handle: int, how: int) -> None:
        if not removed:
            removed.extend(scratch_files(Path()))
            removed[0].unlink()
        flock(handle, how)

    monkeypatch.setattr(atomic.fcntl, "flock", lose_the_race)
    atomic.write(Path("a.txt"), lambda scratch: scratch.write_text("x"))
    assert removed
    assert Path("a.txt").read_text() == "x"


@pytest.mark.parametrize("kind", ["no fcntl", "no locks"])
def test_a_system_without_locks(kind: str, monkeypatch: pytest.MonkeyPatch):
    kill_a_writer("a.txt")

    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    if kind == "no fcntl":
        monkeypatch.setattr(atomic, "fcntl", None)
    else:
        monkeypatch.setattr(atomic.fcntl, "flock", fail)
    atomic.write(Path("a.txt"), lambda scratch: scratch.write_text("x"))
    assert Path("a.txt").read_text() == "x"
    assert len(scratch_files(Path())) == 1  # another process may still write it


def test_an_error_names_the_right_file():
    def read_another(scratch: Path) -> None:
        Path("input.csv").read_text()

    def fill(scratch: Path) -> None:
        raise OSError(28, "No space left on device")

    def fill_by_name(scratch: Path) -> None:
        raise OSError(28, "No space left on device", str(scratch))

    for to, named in ((read_another, "input.csv"), (fill, "f/a.csv"), (fill_by_name, "f/a.csv")):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            atomic.write(Path("f/a.csv"), to)
        assert caught.value.filename == named
    assert not list(Path("f").iterdir())


def test_an_interrupted_write_leaves_nothing():
    def stop(scratch: Path) -> None:
        scratch.write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write(Path("f/a.csv"), stop)
    assert not list(Path("f").iterdir())
