"""Metrics equal plain definitions, keep their digits, and are exact over all rows."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from mmoe.metrics.bounded import RunningR2
from mmoe.metrics.exact import R2, RowMean, log_loss
from mmoe.tasks import Binary, Count, Multiclass, Regression, Task
from mmoe.training.task_metrics import TaskMetrics


def tasks(*names: str) -> list[Task]:
    return [Binary("c", ("x",), name=name) for name in names]


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
        f"val/{task}/{name}" for task in ("zebra", "ant", "mole") for name in Binary.METRICS
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
    mixed = [*tasks("class"), Regression("c", name="number")]
    metrics = TaskMetrics(mixed)("val", logits, labels)
    mse = (logits[:, 1] - labels[:, 1]).double().square().mean()
    assert metrics["val/number/mse"].item() == pytest.approx(mse.item())
    assert metrics["val/number/r2"].item() == pytest.approx(
        1 - (mse / labels[:, 1].double().var(correction=0)).item()
    )
    assert metrics["val/number/rmse"].item() == pytest.approx(mse.item() ** 0.5)
    assert len(metrics) == 9
    assert torch.equal(mixed[1].predict(logits[:, 1:]), logits[:, 1:].double())


def test_a_prediction_does_not_depend_on_its_place():
    logits, (task,) = 4 * torch.randn(2000, 2), tasks("t")
    together = task.predict(logits[:, :1])
    assert torch.equal(together, torch.cat([task.predict(logits[i : i + 1, :1]) for i in range(2000)]))
    torch.testing.assert_close(together, logits[:, :1].double().sigmoid())


def test_a_call_keeps_nothing_of_the_previous_one():
    metrics = TaskMetrics(tasks("t"))
    logits, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]])
    assert metrics("val", logits, labels)["val/t/auroc"] == 1
    assert metrics("val", -logits, labels)["val/t/auroc"] == 0


def test_log_loss_is_a_mean_over_rows_not_batches():
    loss = RowMean(log_loss)
    loss.update(torch.tensor([0.5] * 3, dtype=torch.float64), torch.tensor([1, 0, 1]))
    loss.update(torch.tensor([0.25], dtype=torch.float64), torch.tensor([1]))
    assert loss.compute().item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4)


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e7])
def test_an_offset_does_not_change_regression_metrics(offset: float):
    task = Regression("y", name="y", mean=offset, std=2.0)
    labels = torch.tensor([-1.0, 1.0, 1.0, -1.0])[:, None] + offset
    logits = torch.tensor([-0.25, 0.75, 0.25, -0.75])[:, None]
    numbers = task.predict(logits)[:, 0].tolist()
    assert numbers == [offset - 0.5, offset + 1.5, offset + 0.5, offset - 1.5]
    metrics = TaskMetrics([task])("val", logits, labels)
    assert metrics["val/y/mse"].item() == 0.25
    assert metrics["val/y/r2"].item() == 0.75


@pytest.mark.parametrize("label", [0.1, 1e7])
@pytest.mark.parametrize("count", [1, 7])
def test_equal_labels_have_no_r2(label: float, count: int):
    metrics = TaskMetrics([Regression("y", name="y")])(
        "val", torch.rand(count, 1), torch.full((count, 1), label)
    )
    assert metrics["val/y/r2"].isnan()
    assert metrics["val/y/mse"].isfinite()


def test_equal_labels_have_no_r2_over_several_processes():
    metrics = []
    for count in (1, 2):
        metrics.append(RunningR2())
        metrics[-1].update(torch.zeros(count), torch.full((count,), 0.1))
    both = RunningR2()
    both.first = torch.stack([metric.first for metric in metrics])
    both.sums = torch.stack([metric.sums for metric in metrics])
    assert both.compute().isnan()


def test_r2_of_batches_equals_r2_of_all_rows():
    whole, parts, (numbers, labels) = R2(), R2(), torch.randn(2, 50)
    whole.update(numbers, labels)
    for some in torch.stack([numbers, labels]).split(20, 1):
        parts.update(*some)
    assert parts.compute() == whole.compute()


def test_the_log_loss_of_certain_probabilities_is_finite():
    loss = RowMean(log_loss)
    loss.update(torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    assert loss.compute().item() == 50


KINDS = [
    Binary("c", ("x",), name="class"),
    Multiclass("c", ("a", "b", "c", "d"), name="classes"),
    Regression("c", name="number", mean=3, std=2),
    Count("c", name="count", mean=1.5),
]


def rows_of_all_kinds(count: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(count, 7).round(decimals=1)  # with ties
    columns = [
        (torch.rand(count) < logits[:, 0].sigmoid()).float(),
        torch.randint(0, 3, (count,)).float(),  # no row has the last class
        3 + 2 * torch.randn(count),
        torch.poisson(logits[:, 6].exp()),
    ]
    known = torch.rand(count, 4) < 0.6
    return logits, torch.stack(columns, dim=1) * known, known


def test_metrics_of_all_kinds_equal_sklearn_on_known_rows():
    logits, labels, known = rows_of_all_kinds()
    found = {
        name.removeprefix("val/"): value.item()
        for name, value in TaskMetrics(KINDS)("val", logits, labels, known).items()
    }
    expected = {}
    p, y = logits[known[:, 0], 0].double().sigmoid().numpy(), labels[known[:, 0], 0].numpy()
    expected |= {
        "class/auroc": sk.roc_auc_score(y, p), "class/average_precision": sk.average_precision_score(y, p),
        "class/log_loss": sk.log_loss(y, p), "class/brier": sk.brier_score_loss(y, p),
    }  # fmt: skip
    bins = np.minimum((p * 15).astype(int), 14)
    errors = [abs(p[bins == b].mean() - y[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    expected["class/calibration_error"] = sum(errors)
    q, z = logits[known[:, 1], 1:5].double().softmax(-1).numpy(), labels[known[:, 1], 1].int().numpy()
    areas = [sk.roc_auc_score(z == k, q[:, k]) for k in range(3)]
    expected |= {
        "classes/auroc": np.mean(areas), "classes/accuracy": sk.accuracy_score(z, q.argmax(1)),
        "classes/log_loss": sk.log_loss(z, q, labels=range(4)),
    }  # fmt: skip
    x, n = 3 + 2 * logits[known[:, 2], 5].double().numpy(), labels[known[:, 2], 2].numpy()
    mse = sk.mean_squared_error(n, x)
    expected |= {
        "number/mse": mse, "number/rmse": mse**0.5, "number/mae": sk.mean_absolute_error(n, x),
        "number/r2": sk.r2_score(n, x),
    }  # fmt: skip
    mu, c = 1.5 * logits[known[:, 3], 6].double().exp().numpy(), labels[known[:, 3], 3].numpy()
    expected |= {
        "count/poisson_deviance": sk.mean_poisson_deviance(c, mu), "count/mae": sk.mean_absolute_error(c, mu),
        "count/rmse": sk.mean_squared_error(c, mu) ** 0.5,
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(found) == {f"{task.name}/{name}" for task in KINDS for name in task.METRICS}


def test_unknown_labels_do_not_count():
    logits, labels, known = rows_of_all_kinds()
    metrics = TaskMetrics(KINDS)
    whole = metrics("val", logits, labels, known)
    garbage = torch.where(known, labels, 1 - labels.clamp(0, 1))
    for name, value in metrics("val", logits, garbage, known).items():
        assert torch.equal(value, whole[name])


@pytest.mark.filterwarnings("error")
def test_metrics_without_labels_or_with_equal_labels_are_nan_and_said_so():
    logits, labels, known = rows_of_all_kinds(40)
    for kept in (0, 1, 5):
        equal = torch.zeros_like(labels)
        some = (torch.arange(40) < kept)[:, None].expand_as(known)
        found = TaskMetrics(KINDS)("val", logits, equal, some)
        for i, task in enumerate(KINDS):
            undefined = task.undefined_metrics(equal[some[:, i], i])
            for name in task.METRICS:
                assert found[f"val/{task.name}/{name}"].isnan().item() == (name in undefined), name
    assert KINDS[0].undefined_metrics(torch.ones(3)) == ("auroc",)
    assert KINDS[0].undefined_metrics(torch.tensor([0.0, 1.0])) == ()
