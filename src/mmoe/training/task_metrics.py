"""The metrics of every task of a data set.

N rows, T tasks, L logits of all tasks.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torchmetrics import MetricCollection

from mmoe.tasks import Task, logit_columns


class TaskMetrics(nn.Module):
    """The metrics of every task over its known labels, named `{stage}/{task}/{metric}`.

    A metric that cannot be computed, such as the AUROC of a single class, is NaN. Training rows have no
    groups, and so no `grouped_auroc`. With `is_bounded`, memory does not grow with the rows, and areas have
    the small error of bins; see `mmoe.metrics.areas`.
    """

    def __init__(self, tasks: Sequence[Task], is_bounded: bool = False) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.columns = logit_columns(tasks)
        self.collections = nn.ModuleList(task.metrics(is_bounded) for task in tasks)

    def forward(
        self,
        stage: str,
        logits: Tensor,
        labels: Tensor,
        known: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the metrics over the rows of all processes; the shapes are those of `update`."""
        self.update(logits, labels, known, groups)
        return self.compute(stage)

    def update(
        self, logits: Tensor, labels: Tensor, known: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Add rows of this process.

        Shape:
            logits: [N, L]; labels: [N, T]; known: None or [N, T]; groups: None or [N, 1].
        """
        for i, (task, collection) in enumerate(zip(self.tasks, self.collections, strict=True)):
            predicted, own = task.predict(logits[:, self.columns[i]]), labels[:, i]
            group = None if groups is None else groups[:, 0]
            if known is not None:
                rows = known[:, i]
                predicted, own, group = predicted[rows], own[rows], None if group is None else group[rows]
            assert isinstance(collection, MetricCollection)
            collection.update(*task.metric_inputs(predicted, own), groups=group)

    def compute(self, stage: str) -> dict[str, Tensor]:
        """Compute the metrics over the rows of all processes since the last call."""
        result: dict[str, Tensor] = {}
        for task, collection in zip(self.tasks, self.collections, strict=True):
            assert isinstance(collection, MetricCollection)
            values = collection.compute()
            names = task.METRICS if stage == "train" else task.metric_names
            result |= {f"{stage}/{task.name}/{name}": values[name] for name in names}
            collection.reset()
        return result
