"""Gate statistics equal numbers computed by hand."""

import math

import pandas as pd
import pytest
import torch
from conftest import only_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import Train

from mmoe.training.gate_statistics import GateStatistics

TASKS = ["one", "two"]
# Two rows, two tasks, three experts.
GATES = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [[0.95, 0.05, 0.0], [0.0, 1.0, 0.0]]])


def test_the_numbers_by_hand():
    statistics = GateStatistics()
    for row in GATES:  # batches of one
        statistics.update(row[None])
    found = statistics.summary()
    torch.testing.assert_close(found.weights, torch.tensor([[0.975, 0.025, 0], [0.25, 0.75, 0]]).double())
    of_row = -(0.95 * math.log(0.95) + 0.05 * math.log(0.05))
    assert found.entropy.tolist() == pytest.approx([of_row / 2, math.log(2) / 2])
    assert found.effective_experts.tolist() == pytest.approx([math.exp(of_row / 2), math.sqrt(2)])
    assert found.polarised.tolist() == [1.0, 0.5]
    cosines = [1 / math.sqrt(2), 0.05 / math.hypot(0.95, 0.05)]
    expected = sum(cosines) / 2
    assert found.similarity.flatten().tolist() == pytest.approx([1, expected, expected, 1])
    assert found.unused_experts.tolist() == [False, False, True]
    names = found.by_name(TASKS)
    assert names["val/gates/unused_experts"] == 1
    assert names["val/two/gate_1"] == 0.75
    assert names["val/gates/similarity_one_two"].item() == pytest.approx(expected)
    assert found.describe_collapse(TASKS) == "the gate of one gives expert 0 97% of its weight"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_zero_count_as_nothing(dtype: torch.dtype):
    statistics = GateStatistics()
    statistics.update(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]], dtype=dtype))
    found = statistics.summary()
    assert found.entropy.tolist() == pytest.approx([0.0, math.log(2)], rel=1e-2)
    assert found.similarity[0, 1].item() == pytest.approx(math.sqrt(0.5), rel=1e-2)


def test_each_replica_has_its_own_statistics():
    statistics = GateStatistics()
    statistics.update(torch.stack([torch.full_like(GATES, 1 / 3), GATES]))
    found = statistics.summary()
    assert found.weights.shape == (2, 2, 3)
    assert found.effective_experts[0].tolist() == pytest.approx([3, 3])
    assert found.describe_collapse(TASKS) == "the gate of one in replica 1 gives expert 0 97% of its weight"


def test_a_single_expert_is_not_a_collapse():
    statistics = GateStatistics()
    statistics.update(torch.ones(4, 2, 1))
    assert statistics.summary().describe_collapse(TASKS) is None


def test_training_logs_gate_statistics_every_epoch(train: Train):
    assert train("experiment=smoke", "activation=relu").code == 0
    history = pd.read_csv(only_run() / "history.csv")
    weights = history[[f"val/income/gate_{e}" for e in range(8)]]
    assert weights.sum(axis=1).tolist() == pytest.approx([1] * len(history))
    assert history["val/marital/effective_experts"].between(1, 8).all()
    assert history["val/gates/similarity_income_marital"].between(0, 1).all()
    assert history["val/units/dead"].between(0, 1).all()
    log = EventAccumulator(str(only_run())).Reload()
    logged = [event.value for event in log.Scalars("val/income/gate_entropy")]
    assert logged == pytest.approx(history["val/income/gate_entropy"].tolist())


def test_a_collapse_gives_one_warning(train: Train, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.training.gate_statistics.COLLAPSED", 0.1)  # one of 8 experts always has more
    result = train("experiment=smoke")
    assert result.code == 0
    assert (result.out + result.err).count("gives expert") == 1
    assert "model.gate_temperature or model.gate_dropout=0.1 makes it use" in result.out


def test_one_task_and_one_expert(train: Train):
    one = ["data.tasks.marital=null", "model.num_experts=1", "trainer.max_epochs=1"]
    assert train("experiment=smoke", *one).code == 0
    history = pd.read_csv(only_run() / "history.csv")
    assert history["val/income/effective_experts"].tolist() == [1.0]


@pytest.mark.parametrize("model", ["shared_bottom", "ple", "omoe"])
def test_other_methods(train: Train, model: str):
    assert train("experiment=smoke", f"model={model}", "trainer.max_epochs=1").code == 0
    history = pd.read_csv(only_run() / "history.csv")
    assert ("val/income/gate_entropy" in history) == (model != "shared_bottom")
