from pathlib import Path

import pytest
import torch
from conftest import config

from mmoe import runs
from mmoe.build import build, build_network


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "folder" / "a.txt"
    runs.write(path, lambda scratch: scratch.write_text("one"))

    def fail(scratch: Path) -> None:
        scratch.write_text("tw")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.write(path, fail)
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_network_comes_back_from_its_folder_alone(tmp_path: Path):
    c = config("data.source=sample", "model.num_experts=3", "inputs=embedding")
    data = build(c, "data")
    network = build_network(c, data.schema).eval()
    runs.start(tmp_path, c, data.schema)
    (tmp_path / "checkpoints").mkdir()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoints/best.ckpt")
    again = runs.load_network(tmp_path)
    rows = data.dataset.rows["test"]
    assert not again.training
    for a, b in zip(network(rows.codes, rows.numerics), again(rows.codes, rows.numerics), strict=True):
        assert torch.equal(a, b)


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.yaml: missing; is .* a run folder\?"):
        runs.load_network(tmp_path)
