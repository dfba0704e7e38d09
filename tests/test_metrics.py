import math

import pytest
import torch
from torch import Tensor

from mmoe.data.schema import Task
from mmoe.metrics import METRICS, LogLoss, TaskMetrics, predicted


def tasks(*names: str) -> list[Task]:
    return [Task(name, "c", ("x",)) for name in names]


def pairwise_auroc(scores: Tensor, labels: Tensor) -> float:
    """The share of pairs of a positive and a negative row in the right order; ties count half."""
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def average_precision(scores: Tensor, labels: Tensor) -> float:
    ranked = labels[scores.argsort(descending=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return (precision * ranked).sum().item() / ranked.sum().item()


def test_each_task_has_the_exact_values_of_its_own_column():
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


def test_a_regression_has_errors_of_its_numbers():
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
    assert torch.equal(predicted(logits[:, 1], mixed[1]), logits[:, 1].double())


def test_nothing_is_left_from_the_call_before():
    metrics = TaskMetrics(tasks("t"))
    logits, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]])
    assert metrics("val", logits, labels)["val/t/auroc"] == 1
    assert metrics("val", -logits, labels)["val/t/auroc"] == 0


def test_log_loss_is_a_mean_over_rows_not_batches():
    loss = LogLoss()
    loss.update(torch.tensor([0.5] * 3, dtype=torch.float64), torch.tensor([1, 0, 1]))
    loss.update(torch.tensor([0.25], dtype=torch.float64), torch.tensor([1]))
    assert loss.compute().item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
