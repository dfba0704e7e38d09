from pathlib import Path

import pytest
import torch
from conftest import config

from mmoe import atomic, runs
from mmoe.build import build, build_network, check_targets


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
        "data.source=sample", "model.num_experts=3", "inputs=embedding", "callbacks=null", "logger=none"
    )
    data = build(c, "data")
    network = build_network(c, data.schema).eval()
    runs.start(tmp_path, c, data.schema)
    (tmp_path / "checkpoints").mkdir()
    state = {f"objective.network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoints/best.ckpt")
    again = runs.load_network(tmp_path)
    rows = data.dataset.splits["test"]
    assert not again.training
    for a, b in zip(network(rows.codes, rows.numerics), again(rows.codes, rows.numerics), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "torch.hub.load", "builtins.eval", "mmoe.runs.load_network", "mmoe.no.Such"],
)
def test_a_configuration_may_only_build_trusted_classes(tmp_path: Path, target: str):
    c = config("data.source=sample", "callbacks=null", "logger=none")
    schema = build(c, "data").schema
    c.inputs.numeric = {"_target_": target, "_partial_": True}
    runs.start(tmp_path, c, schema)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    with pytest.raises(ValueError, match=f"inputs.numeric._target_={target}: must be a class of mmoe, torch"):
        runs.load_network(tmp_path)


def test_every_shipped_configuration_is_trusted():
    for experiment in ("census", "census_seed"):
        check_targets(config(f"experiment={experiment}"))
    check_targets(config("data=census_onehot_csv"))


def test_a_folder_holds_one_run(tmp_path: Path):
    c = config("data.source=sample", "callbacks=null", "logger=none")
    schema = build(c, "data").schema
    runs.start(tmp_path, c, schema)
    with pytest.raises(ValueError, match="must not hold a run already"):
        runs.start(tmp_path, c, schema)


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.yaml: missing; is .* a run folder\?"):
        runs.load_network(tmp_path)
