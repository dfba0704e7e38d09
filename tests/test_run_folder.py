from pathlib import Path

import pytest
import torch
from conftest import config

from mmoe import atomic, load
from mmoe.build import build
from mmoe.errors import UserError
from mmoe.training import checkpoints, run_folder, stored_config
from mmoe.training.preparation import build_network

MONITOR = ("monitor=val/income/auroc", "monitor_mode=max")  # a run stores the monitor of its tasks


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "folder" / "a.txt"
    atomic.write(path, lambda scratch: scratch.write_text("one"))

    def fail(scratch: Path) -> None:
        scratch.write_text("tw")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic.write(path, fail)
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_network_comes_back_from_its_folder_alone(tmp_path: Path):
    c = config(
        "data.source=sample",
        "model.num_experts=3",
        "inputs=embedding",
        "callbacks=null",
        "logger=none",
        *MONITOR,
    )
    data = build(c, "data")
    network = build_network(c, data.schema).eval()
    run_folder.start(tmp_path, stored_config.portable_yaml(c), data.schema)
    (tmp_path / "checkpoints").mkdir()
    state = {f"objective.network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoints/best.ckpt")
    again = load(tmp_path).network()
    rows = data.dataset.splits["test"]
    assert not again.training
    for a, b in zip(network(rows.levels, rows.numbers), again(rows.levels, rows.numbers), strict=True):
        assert torch.equal(a, b)


def test_a_folder_holds_one_run(tmp_path: Path):
    c = config("data.source=sample", "callbacks=null", "logger=none", *MONITOR)
    schema = build(c, "data").schema
    run_folder.start(tmp_path, stored_config.portable_yaml(c), schema)
    with pytest.raises(ValueError, match="must not hold a run already"):
        run_folder.start(tmp_path, stored_config.portable_yaml(c), schema)


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.yaml: missing; is .* a run folder\?"):
        load(tmp_path).network()


@pytest.mark.parametrize("name", ["metrics.json", "schema.json"])
def test_nesting_without_end_is_refused(name: str):
    Path("run").mkdir()
    Path("run", name).write_text("[" * 100_000)
    read = {"metrics.json": run_folder.read_metrics, "schema.json": run_folder.read_schema}[name]
    with pytest.raises(UserError, match=rf"^run/{name}: "):
        read(Path("run"))


def test_a_lock_is_removed_while_it_is_held(monkeypatch: pytest.MonkeyPatch):
    release, found = run_folder.FileLock.release, []

    def watch(lock: run_folder.FileLock, *arguments: bool) -> None:
        found.append(Path("run.lock").exists())
        release(lock, *arguments)

    monkeypatch.setattr(run_folder.FileLock, "release", watch)
    with run_folder.locked(Path()):
        assert Path("run.lock").exists()
        with pytest.raises(UserError, match="another process is at work"), run_folder.locked(Path()):
            pass
    assert found[0] is False
    with run_folder.locked(Path()):
        pass


@pytest.mark.parametrize("replica", [-1, 1.0, True, "0", 4, None])
def test_a_replica_is_one_of_the_run(replica: object):
    given = "replica" if replica is None else f"replica={replica}"
    with pytest.raises(UserError, match=f"^{given}: must be 0 to 3, because the run has 4 replicas"):
        checkpoints.check_replica(4, replica)
    with pytest.raises(UserError, match=r"^replica=0: the run has no replicas"):
        checkpoints.check_replica(1, 0)
    checkpoints.check_replica(1, None)
    checkpoints.check_replica(4, 3)


@pytest.mark.parametrize("text", ["", "\n", "\n\n"])
def test_a_history_may_be_empty(text: str):
    Path("history.csv").write_text(text)
    assert run_folder.read_table(Path(), "history.csv").empty
