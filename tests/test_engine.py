"""Shards that are encoded on the workers of Dask, and files in an S3 store."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Command
from test_shards import table, write_files
from test_table import write_yaml

from mmoe.data import partitions
from mmoe.errors import UserError


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def shards_of(data: Any) -> dict[str, bytes]:
    folder = data.dataset.splits["train"].folder
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.arrow"))}


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers on this machine."""
    address = f"tcp://127.0.0.1:{free_port()}"
    program = [sys.executable, "-m"]
    scheduler = ["distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", address, "--no-dashboard", "--no-nanny", "--nthreads=1"]
    started = [
        subprocess.Popen([*program, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (scheduler, worker, worker)
    ]
    yield address, started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_dask_worker_does_not_matter(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 200)
    files = write_files(tmp_path / "rows", 30, rows=6000)
    address, (_, first, _) = cluster
    local = table(train=files, stream=True, cache_dir=str(tmp_path / "local"))
    assert len(shards_of(local)) == 30
    cache = tmp_path / "dask"
    dask = table(train=files, stream=True, cache_dir=str(cache), engine="dask", dask_address=address)
    killer = [sys.executable, "-c", KILLER, str(cache), str(first.pid)]
    with subprocess.Popen(killer) as process:
        assert shards_of(dask) == shards_of(local)
        assert process.wait(60) == 0
    assert first.wait(10) == -signal.SIGKILL


# Kills a process as soon as three shards are there.
KILLER = """
import os, pathlib, signal, sys, time
for _ in range(6000):
    if len(list(pathlib.Path(sys.argv[1]).rglob("*.arrow"))) >= 3:
        os.kill(int(sys.argv[2]), signal.SIGKILL)
        sys.exit(0)
    time.sleep(0.01)
sys.exit(1)
"""


@pytest.mark.slow
def test_a_cluster_is_started_here_without_an_address(tmp_path: Path):
    files = write_files(tmp_path / "rows", 3)
    local = table(train=files, stream=True, cache_dir=str(tmp_path / "local"))
    dask = table(train=files, stream=True, cache_dir=str(tmp_path / "dask"), engine="dask")
    assert shards_of(dask) == shards_of(local)


def test_no_scheduler_is_one_line(tmp_path: Path, train: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.data.engine.TIMEOUT", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    write_yaml(train=write_files(tmp_path / "rows"), stream=True, engine="dask", dask_address=address)
    result = train("--config-dir", "conf", "data=mine", "hydra.run.dir=run")
    assert result.code == 2
    assert f"data.dask_address={address}: no Dask scheduler answers" in result.err
    assert not Path("run").exists()


@pytest.mark.slow
def test_errors_of_workers_are_one_line(tmp_path: Path):
    files = write_files(tmp_path / "rows", 3)
    with pytest.raises(UserError, match=r"0\.parquet, column city, row 1: must be a number"):
        _ = table(train=files, stream=True, engine="dask", columns={"city": "numeric"}).dataset


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on this machine, with an empty bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    names = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_ENDPOINT_URL": url}
    for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for _ in range(200):
        try:
            s3fs.S3FileSystem().mkdir("rows")
            break
        except Exception:  # the server has not started yet
            s3fs.S3FileSystem.clear_instance_cache()
            time.sleep(0.1)
    yield "s3://rows"
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_tables_in_an_object_store(tmp_path: Path, store: str, train: Command, stream: bool):
    import s3fs

    files = write_files(tmp_path / "rows", 3)
    s3fs.S3FileSystem().put(files, f"{store}/train", recursive=True)
    remote = table(train=f"{store}/train", stream=stream, cache_dir="remote").dataset
    local = table(train=files, stream=stream, cache_dir="local").dataset
    assert remote.schema.categorical == local.schema.categorical
    assert remote.schema.files == local.schema.files
    write_yaml(train=f"{store}/train/*.parquet", stream=stream, cache_dir="remote")
    quick = ["--config-dir", "conf", "data=mine", "trainer.max_epochs=1", "figures=false", "logger=none"]
    assert train(*quick, "hydra.run.dir=run").code == 0
    result = train(*quick, "hydra.run.dir=other", "data.train=s3://rows/none/*.parquet")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "s3://rows/none/*.parquet" in result.err
    assert len(pd.read_parquet("run/predictions.parquet")) == 100
