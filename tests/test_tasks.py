"""Metrics equal plain definitions, keep their digits, and are exact over all rows."""

import math

import pytest
import torch
from torch import Tensor

from mmoe.data.schema import Task
from mmoe.training.tasks import METRICS, R2, LogLoss, TaskMetrics, to_predictions


def tasks(*names: str) -> list[Task]:
    return [Task(name, "c", ("x",)) for name in names]


def pairwise_auroc(scores: Tensor, labels: Tensor) -> float:
    """Share of pairs (positive row, negative row) in the right order; ties count half."""
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def average_precision(scores: Tensor, labels: Tensor) -> float:
    ranked = labels[scores.argsort(descending=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return (precision * ranked).sum().item() / ranked.sum().item()


def test_metrics_are_exact_for_each_task():
    torch.manual_seed(0)
    labels = (torch.rand(500, 3) < torch.tensor([0.5, 0.1, 0.9])).float()
    logits = torch.randn(500, 3) + labels
    metrics = TaskMetrics(tasks("zebra", "ant", "mole"))("val", logits, labels)
    assert set(metrics) == {
        f"val/{task}/{name}" for task in ("zebra", "ant", "mole") for name in METRICS["binary"]
    }
    for i, task in enumerate(["zebra", "ant", "mole"]):
        p, y = logits[:, i].double().sigmoid(), labels[:, i]
        loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean().item()
        assert metrics[f"val/{task}/auroc"].item() == pytest.approx(pairwise_auroc(p, y), abs=1e-6)
        assert metrics[f"val/{task}/average_precision"].item() == pytest.approx(
            average_precision(p, y), abs=1e-6
        )
        assert metrics[f"val/{task}/log_loss"].item() == pytest.approx(loss, abs=1e-12)


def test_large_logits_are_not_tied():
    logits = torch.tensor([[20.0], [25.0], [30.0]])
    metrics = TaskMetrics(tasks("t"))("test", logits, torch.tensor([[0.0], [1.0], [1.0]]))
    assert metrics["test/t/auroc"] == 1.0


def test_regression_metrics():
    torch.manual_seed(0)
    labels, logits = torch.randn(200, 2), torch.randn(200, 2)
    labels[:, 0] = (labels[:, 0] > 0).float()
    mixed = [*tasks("class"), Task("number", "c", kind="regression")]
    metrics = TaskMetrics(mixed)("val", logits, labels)
    mse = (logits[:, 1] - labels[:, 1]).double().square().mean()
    assert metrics["val/number/mse"].item() == pytest.approx(mse.item())
    assert metrics["val/number/r2"].item() == pytest.approx(
        1 - (mse / labels[:, 1].double().var(correction=0)).item()
    )
    assert len(metrics) == 5
    assert torch.equal(to_predictions(logits[:, 1], mixed[1]), logits[:, 1].double())


def test_a_prediction_does_not_depend_on_its_place():
    logits, (task,) = 4 * torch.randn(2000, 2), tasks("t")
    together = to_predictions(logits[:, 0], task)
    assert torch.equal(together, torch.cat([to_predictions(logits[i : i + 1, 0], task) for i in range(2000)]))
    torch.testing.assert_close(together, logits[:, 0].double().sigmoid())


def test_a_call_keeps_nothing_of_the_previous_one():
    metrics = TaskMetrics(tasks("t"))
    logits, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]])
    assert metrics("val", logits, labels)["val/t/auroc"] == 1
    assert metrics("val", -logits, labels)["val/t/auroc"] == 0


def test_log_loss_is_a_mean_over_rows_not_batches():
    loss = LogLoss()
    loss.update(torch.tensor([0.5] * 3, dtype=torch.float64), torch.tensor([1, 0, 1]))
    loss.update(torch.tensor([0.25], dtype=torch.float64), torch.tensor([1]))
    assert loss.compute().item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4)


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e7])
def test_an_offset_does_not_change_regression_metrics(offset: float):
    task = Task("y", "y", kind="regression", mean=offset, std=2.0)
    labels = torch.tensor([-1.0, 1.0, 1.0, -1.0])[:, None] + offset
    logits = torch.tensor([-0.25, 0.75, 0.25, -0.75])[:, None]
    numbers = to_predictions(logits[:, 0], task).tolist()
    assert numbers == [offset - 0.5, offset + 1.5, offset + 0.5, offset - 1.5]
    metrics = TaskMetrics([task])("val", logits, labels)
    assert metrics["val/y/mse"].item() == 0.25
    assert metrics["val/y/r2"].item() == 0.75


@pytest.mark.parametrize("label", [0.1, 1e7])
@pytest.mark.parametrize("count", [1, 7])
def test_equal_labels_have_no_r2(label: float, count: int):
    metrics = TaskMetrics([Task("y", "y", kind="regression")])(
        "val", torch.rand(count, 1), torch.full((count, 1), label)
    )
    assert metrics["val/y/r2"].isnan()
    assert metrics["val/y/mse"].isfinite()


def test_r2_of_batches_equals_r2_of_all_rows():
    whole, parts, (numbers, labels) = R2(), R2(), torch.randn(2, 50)
    whole.update(numbers, labels)
    for some in torch.stack([numbers, labels]).split(20, 1):
        parts.update(*some)
    assert parts.compute() == whole.compute()


def test_the_log_loss_of_certain_probabilities_is_finite():
    loss = LogLoss()
    loss.update(torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    assert loss.compute().item() == 50
