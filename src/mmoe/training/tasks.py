"""Predictions and metrics of each kind of task, and names of prediction columns.

N rows, T tasks.
"""

from collections.abc import Callable, Sequence

import torch
from scipy.special import expit
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.regression import MeanSquaredError
from torchmetrics.utilities import dim_zero_cat

from mmoe.data.schema import Task

# The metrics of each kind of task, and whether larger values are better.
METRICS = {
    "binary": {"auroc": True, "average_precision": True, "log_loss": False},
    "regression": {"mse": False, "r2": True},
}


def validation_metrics(tasks: Sequence[Task]) -> dict[str, bool]:
    """Names of all validation metrics, and whether larger values are better."""
    return {f"val/{t.name}/{name}": larger for t in tasks for name, larger in METRICS[t.kind].items()}


def main_metric(task: Task) -> str:
    """Name the first metric of a task's kind, which figures and sweeps show: AUROC or MSE."""
    return next(iter(METRICS[task.kind]))


def prediction_column(task: Task) -> str:
    """Name the column that holds a task's predictions."""
    return f"{task.name}_{'probability' if task.is_binary else 'prediction'}"


def gate_column(task: Task, expert: int) -> str:
    """Name the column that holds a task's gate weights for one expert."""
    return f"{task.name}_gate_{expert}"


def to_predictions(logits: Tensor, task: Task) -> Tensor:
    """Turn a task's logits into predictions in float64: probabilities, or values in the label's unit."""
    # float32 rounds the sigmoid of logits above 17 to 1, which would tie rows that differ.
    exact = logits.double()
    if task.is_binary and exact.device.type == "cpu":
        # On a CPU, torch rounds the sigmoid of a tensor's last elements differently.
        return torch.from_numpy(expit(exact.numpy()))
    if task.is_binary:
        return exact.sigmoid()
    return exact * task.std + task.mean if task.is_scaled else exact


class LogLoss(Metric):
    """Mean binary cross-entropy of probabilities, in nats."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities [N] and labels [N]."""
        loss = nn.functional.binary_cross_entropy(preds, target.to(preds), reduction="sum")
        self.total = self.total + loss
        self.count = self.count + target.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class R2(Metric):
    """1 - (squared error) / (squared deviation of the labels from their mean); NaN if all labels are equal.

    It keeps all rows, because running sums of squares lose digits when the labels are far from 0.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [N] and labels [N]."""
        self.preds.append(preds.double())
        self.target.append(target.double())

    def compute(self) -> Tensor:
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        error, deviation = (preds - target).square().sum(), (target - target.mean()).square().sum()
        varies = (target != target[:1]).any()
        return torch.where(varies, 1 - error / deviation, torch.nan)


class TaskMetrics(nn.Module):
    """The metrics of every task, named `{stage}/{task}/{metric}`."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        kinds: dict[str, Callable[[], list[Metric]]] = {
            # With the default thresholds=None, AUROC and average precision are exact.
            "binary": lambda: [BinaryAUROC(), BinaryAveragePrecision(), LogLoss()],
            "regression": lambda: [MeanSquaredError(), R2()],
        }
        self.collections = nn.ModuleList(
            MetricCollection(dict(zip(METRICS[task.kind], kinds[task.kind](), strict=True))) for task in tasks
        )

    def forward(self, stage: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the metrics of logits [N, T] and labels [N, T] over the rows of all ranks."""
        result: dict[str, Tensor] = {}
        for i, (task, collection) in enumerate(zip(self.tasks, self.collections, strict=True)):
            assert isinstance(collection, MetricCollection)
            values = labels[:, i].int() if task.is_binary else labels[:, i].double()
            collection.update(to_predictions(logits[:, i], task), values)
            result |= {f"{stage}/{task.name}/{name}": value for name, value in collection.compute().items()}
            collection.reset()
        return result
