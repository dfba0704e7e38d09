"""The number of torch's intra-op threads."""

import json
from typing import Any

import pytest
import torch
from conftest import only_run
from torch import nn

from mmoe.errors import UserError
from mmoe.training.threads import WORK_PER_THREAD, num_threads, use_threads

NETWORK = nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 63, bias=False))  # 2^12 - 2^6 dense weights


@pytest.fixture
def _four_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize(("factor", "count"), [(0.001, 1), (1.5, 1), (2.5, 2), (3.5, 3), (1000, 4)])
def test_threads_grow_with_the_work_of_a_step(factor: float, count: int):
    assert num_threads("auto", int(factor * WORK_PER_THREAD / (64 * 63)), NETWORK) == count


@pytest.mark.usefixtures("_four_threads")
def test_the_user_decides(monkeypatch: pytest.MonkeyPatch):
    assert num_threads(3, 10**9, NETWORK) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert num_threads("auto", 1, NETWORK) == 4


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", None, True])
def test_other_values_are_refused(value: Any):
    with pytest.raises(UserError, match=f"threads={value}: must be"):
        num_threads(value, 1, NETWORK)


def test_threads_are_restored():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_training_uses_the_threads(train: Any):
    result = train("experiment=smoke", "threads=2")
    assert "samples/s with 2 threads" in result.out
    assert json.loads((only_run() / "metrics.json").read_text())["threads"] == 2
    refused = train("experiment=smoke", "threads=0")
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)
    assert "threads=0: must be an integer of at least 1" in refused.err
