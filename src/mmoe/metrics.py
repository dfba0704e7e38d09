"""The metrics of each task, by its name: exact areas and log loss of a binary one, errors of a regression.

N rows, T tasks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.regression import MeanSquaredError, R2Score

from mmoe.data.schema import Task

# Of each kind of task, and whether more is better.
METRICS = {
    "binary": {"auroc": True, "average_precision": True, "log_loss": False},
    "regression": {"mse": False, "r2": True},
}


def predicted(logits: Tensor, task: Task) -> Tensor:
    """What a task's logits say, float64: the probability of a binary task, the number of a regression."""
    # float32 would round sigmoids of logits above 17 to 1 and so tie rows that are not.
    return logits.double().sigmoid() if task.is_binary else logits.double()


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
        """Add rows: probabilities [N] and labels [N]."""
        loss = nn.functional.binary_cross_entropy(preds, target.to(preds), reduction="sum")
        self.total = self.total + loss
        self.count = self.count + target.numel()

    def compute(self) -> Tensor:
        """The mean over all rows."""
        return self.total / self.count


class TaskMetrics(nn.Module):
    """A collection of metrics for each task, read as `{stage}/{task}/{metric}`."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        kinds: dict[str, Callable[[], list[Metric]]] = {
            # thresholds=None, the default of both areas, is exact.
            "binary": lambda: [BinaryAUROC(), BinaryAveragePrecision(), LogLoss()],
            "regression": lambda: [MeanSquaredError(), R2Score()],
        }
        self.collections = nn.ModuleList(
            MetricCollection(dict(zip(METRICS[task.kind], kinds[task.kind](), strict=True))) for task in tasks
        )

    def forward(self, stage: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The metrics of all rows: logits [N, T] and labels [N, T], those of other ranks included."""
        result: dict[str, Tensor] = {}
        for i, (task, collection) in enumerate(zip(self.tasks, self.collections, strict=True)):
            assert isinstance(collection, MetricCollection)
            values = labels[:, i].int() if task.is_binary else labels[:, i].double()
            collection.update(predicted(logits[:, i], task), values)
            result |= {f"{stage}/{task.name}/{name}": value for name, value in collection.compute().items()}
            collection.reset()
        return result
