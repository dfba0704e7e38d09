"""The metrics of each kind of task. All predictions and sums are in float64.

N rows, W outputs of a task, T tasks, L logits of all tasks, Z bins.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from mmoe.intervals import CALIBRATION_BINS, SMALLEST
from mmoe.tasks import Task, logit_columns
from mmoe.tasks.task import GROUPED_AUROC
from mmoe.training.areas import Areas, BinnedAreas, BinnedMacroAUROC, MacroAUROC
from mmoe.training.binned_metrics import RunningR2, SampledGroupedAUROC
from mmoe.training.grouped_auroc import GroupedAUROC


class TaskMetrics(nn.Module):
    """The metrics of every task over its known labels, named `{stage}/{task}/{metric}`.

    A metric that cannot be computed, such as the AUROC of a single class, is NaN. Training rows have no
    groups, and so no `grouped_auroc`. With `is_binned`, memory does not grow with the rows, and areas have
    the small error of bins; see `binned_metrics`.
    """

    def __init__(self, tasks: Sequence[Task], is_binned: bool = False) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.columns = logit_columns(tasks)
        self.collections = nn.ModuleList(task.metrics(is_binned) for task in tasks)

    def forward(
        self,
        stage: str,
        logits: Tensor,
        labels: Tensor,
        known: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the metrics over the rows of all ranks; the shapes are those of `update`."""
        self.update(logits, labels, known, groups)
        return self.compute(stage)

    def update(
        self, logits: Tensor, labels: Tensor, known: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Add rows of this rank.

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
        """Compute the metrics over the rows of all ranks since the last call."""
        result: dict[str, Tensor] = {}
        for task, collection in zip(self.tasks, self.collections, strict=True):
            assert isinstance(collection, MetricCollection)
            values = collection.compute()
            names = task.METRICS if stage == "train" else task.metric_names
            result |= {f"{stage}/{task.name}/{name}": values[name] for name in names}
            collection.reset()
        return result


def binary_metrics(are_grouped: bool = False, is_binned: bool = False) -> MetricCollection:
    """Metrics of probabilities [N] and labels [N], 0 or 1, and perhaps groups [N]; see `Binary.METRICS`."""
    by_group = SampledGroupedAUROC() if is_binned else GroupedAUROC()
    grouped: dict[str, Metric] = {GROUPED_AUROC: by_group} if are_grouped else {}
    return _collection(
        areas=BinnedAreas() if is_binned else Areas(),  # auroc and average_precision
        log_loss=RowMean(log_loss),
        brier=RowMean(squared_error),
        calibration_error=CalibrationError(),
        **grouped,
    )


def multiclass_metrics(num_classes: int, is_binned: bool = False) -> MetricCollection:
    """Metrics of probabilities [N, W] and classes [N]; see `Multiclass.METRICS`."""
    auroc = BinnedMacroAUROC(num_classes) if is_binned else MacroAUROC()
    return _collection(auroc=auroc, accuracy=RowMean(is_most_probable), log_loss=RowMean(surprise))


def regression_metrics(is_binned: bool = False) -> MetricCollection:
    """Metrics of predictions [N] and labels [N]; see `Regression.METRICS`."""
    return _collection(
        mse=RowMean(squared_error),
        rmse=RootMeanSquaredError(),
        mae=RowMean(absolute_error),
        r2=RunningR2() if is_binned else R2(),
    )


def count_metrics() -> MetricCollection:
    """Metrics of expected counts [N] and labels [N]; see `Count.METRICS`."""
    return _collection(
        poisson_deviance=RowMean(poisson_deviance),
        mae=RowMean(absolute_error),
        rmse=RootMeanSquaredError(),
    )


def _collection(**metrics: Metric) -> MetricCollection:
    # torchmetrics itself would put metrics into one group if their states are equal after the first update,
    # as they are after one without rows.
    return MetricCollection(dict(metrics), compute_groups=False)


def log_loss(preds: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of probabilities, in nats."""
    return binary_cross_entropy(preds, target.to(preds), reduction="none")


def squared_error(preds: Tensor, target: Tensor) -> Tensor:
    """(prediction - label)^2."""
    return (preds - target).square()


def absolute_error(preds: Tensor, target: Tensor) -> Tensor:
    """|prediction - label|."""
    return (preds - target).abs()


def poisson_deviance(preds: Tensor, target: Tensor) -> Tensor:
    """2 (y log(y / mu) - y + mu)."""
    mu = preds.clamp_min(SMALLEST)
    return 2 * (torch.xlogy(target, target / mu) - target + mu)


def is_most_probable(preds: Tensor, target: Tensor) -> Tensor:
    """1 where the label is the class with the largest probability, else 0."""
    return (preds.argmax(-1) == target).double()


def surprise(preds: Tensor, target: Tensor) -> Tensor:
    """The negative logarithm of the probability of the label's class, in nats."""
    return -preds.gather(-1, target.unsqueeze(-1))[:, 0].clamp_min(SMALLEST).log()


class RowMean(Metric):
    """The mean over rows of a function of predictions [N, ...] and labels [N]; NaN without rows."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [N, ...] and labels [N]."""
        self.total = self.total + self.function(preds, target).sum()
        self.count = self.count + target.numel()

    def compute(self) -> Tensor:
        mean: Tensor = self.total / self.count
        return mean


class RootMeanSquaredError(RowMean):
    """The square root of the mean squared error."""

    def __init__(self) -> None:
        super().__init__(squared_error)

    def compute(self) -> Tensor:
        return super().compute().sqrt()


class CalibrationError(Metric):
    """The expected calibration error of probabilities: 15 bins of equal width, each weighted by its rows.

    The error of a bin is the difference between its mean probability and its share of positive labels.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        empty = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
        self.add_state("sums", empty, dist_reduce_fx="sum")  # of rows, probabilities and labels, [3, Z]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities [N] and labels [N]."""
        bins = (preds * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
        values = torch.stack([torch.ones_like(preds), preds, target.to(preds)])  # [3, N]
        added = values.new_zeros(3, CALIBRATION_BINS).index_add(1, bins, values)
        self.sums = self.sums + added  # not in place: half precision casts the initial `sums`

    def compute(self) -> Tensor:
        rows, probabilities, positives = self.sums
        error: Tensor = (probabilities - positives).abs().sum() / rows.sum()
        return error


class R2(Metric):
    """1 - (squared error) / (squared deviation of the labels from their mean); NaN if all labels are equal.

    It keeps all rows, because running sums of squares lose digits when the labels are far from 0.
    """

    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [N] and labels [N]."""
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> Tensor:
        preds, target = dim_zero_cat(self.preds).double(), dim_zero_cat(self.target).double()
        error, deviation = (preds - target).square().sum(), (target - target.mean()).square().sum()
        varies = (target != target[:1]).any()
        return torch.where(varies, 1 - error / deviation, torch.nan)
