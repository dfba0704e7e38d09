"""The metrics of each task, by its name: exact AUROC, average precision and log loss.

N rows, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

METRICS = ("auroc", "average_precision", "log_loss")


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

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.collections = nn.ModuleList(
            MetricCollection(
                # thresholds=None, the default of both areas, is exact.
                dict(zip(METRICS, (BinaryAUROC(), BinaryAveragePrecision(), LogLoss()), strict=True))
            )
            for _ in tasks
        )

    def forward(self, stage: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The metrics of all rows: logits [N, T] and labels [N, T], those of other ranks included."""
        # float32 would round sigmoids of logits above 17 to 1 and so tie rows that are not.
        probabilities = logits.double().sigmoid()
        result: dict[str, Tensor] = {}
        for i, (task, collection) in enumerate(zip(self.tasks, self.collections, strict=True)):
            assert isinstance(collection, MetricCollection)
            collection.update(probabilities[:, i], labels[:, i].int())
            result |= {f"{stage}/{task}/{name}": value for name, value in collection.compute().items()}
            collection.reset()
        return result
