"""The metrics of an epoch with too many rows to keep, and a random sample of its rows.

N rows, L logits of all tasks, R replicas.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmoe.tasks import Task
from mmoe.training.epoch_outputs import LabelledLogits, join
from mmoe.training.task_metrics import TaskMetrics

SAMPLE_ROWS = 2**20  # for bootstrap intervals


class RunningMetrics:
    """Binned metrics of the rows added so far, for each replica separately.

    Attributes:
        sample: a random sample of the rows that were added with `keeps_sample`; None if there are none.
        num_rows: the number of rows.
        bad: which logits are not finite in some row, [L], or [R, L] for replicas.
    """

    def __init__(self, tasks: Sequence[Task], num_replicas: int | None) -> None:
        self.has_replicas = num_replicas is not None
        self.metrics = [TaskMetrics(tasks, is_bounded=True) for _ in range(num_replicas or 1)]
        self.sample: LabelledLogits | None = None
        self.num_rows = 0
        shape = [num_replicas] if num_replicas else []
        self.bad = torch.zeros(*shape, sum(task.num_outputs for task in tasks), dtype=torch.bool)
        self._keys = torch.empty(0)  # random; the rows with the smallest ones are the sample
        self._generator = torch.Generator().manual_seed(0)

    def add(self, outputs: LabelledLogits, keeps_sample: bool) -> None:
        """Add rows: logits [N, L], or [R, N, L] for replicas.

        If a logit is not finite, none of these rows count in the metrics or the sample.
        """
        self.num_rows += outputs.logits.shape[-2]
        bad = ~outputs.logits.isfinite().all(-2)
        self.bad = self.bad | bad.cpu()
        if bad.any():
            return
        parts = outputs.by_replica() if self.has_replicas else [outputs]
        for metrics, own in zip(self.metrics, parts, strict=True):
            metrics.to(own.logits.device)
            metrics.update(*own)
        if keeps_sample:
            self._add_to_sample(outputs.to(torch.device("cpu")))

    def _add_to_sample(self, outputs: LabelledLogits) -> None:
        keys = torch.rand(outputs.logits.shape[-2], generator=self._generator)
        keys = torch.cat([self._keys, keys])
        rows = outputs if self.sample is None else join([self.sample, outputs], torch.device("cpu"))
        if len(keys) > SAMPLE_ROWS:
            kept = keys.topk(SAMPLE_ROWS, largest=False, sorted=False).indices.sort().values
            keys, rows = keys[kept], rows.select(kept)
        self._keys, self.sample = keys, rows

    def compute(self, stage: str) -> dict[str, Tensor]:
        """The metrics over the rows of all processes, by name: scalars, or [R] for replicas."""
        values = [metrics.compute(stage) for metrics in self.metrics]
        if not self.has_replicas:
            return values[0]
        return {name: torch.stack([one[name] for one in values]) for name in values[0]}

    def state_dict(self) -> dict[str, Any]:
        """The state of the metrics, for a checkpoint in the middle of an epoch."""
        states = [
            {name: metric.metric_state for name, metric in collection.items()}  # type: ignore[operator]
            for metrics in self.metrics
            for collection in metrics.collections
        ]
        return {"num_rows": self.num_rows, "bad": self.bad, "metrics": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.num_rows, self.bad = state["num_rows"], state["bad"]
        collections = [collection for metrics in self.metrics for collection in metrics.collections]
        for collection, stored in zip(collections, state["metrics"], strict=True):
            for name, values in stored.items():
                for key, value in values.items():
                    setattr(collection[name], key, value)  # type: ignore[index]
                collection[name]._update_count = 1  # type: ignore[index]  # else `compute` warns
