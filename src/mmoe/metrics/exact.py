"""Exact metrics other than areas. All predictions and sums are in float64.

N rows, Z bins.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmoe.metrics import CALIBRATION_BINS, SMALLEST
from mmoe.metrics.kept_rows import KeptRows


def log_loss(preds: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of probabilities and labels, 0 or 1, in nats."""
    # One logarithm for each row. torch's function takes two, and bounds them by -100 in the same way.
    return -torch.where(target > 0, preds, 1 - preds).log().clamp_min(-100)


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


def cross_entropy(preds: Tensor, target: Tensor) -> Tensor:
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
        self.sums = self.sums + added

    def compute(self) -> Tensor:
        rows, probabilities, positives = self.sums
        error: Tensor = (probabilities - positives).abs().sum() / rows.sum()
        return error


class R2(KeptRows):
    """1 - (squared error) / (squared deviation of the labels from their mean); NaN if all labels are equal.

    It keeps all rows, because running sums of squares lose digits when the labels are far from 0.
    """

    def compute(self) -> Tensor:
        preds, target = dim_zero_cat(self.preds).double(), dim_zero_cat(self.target).double()
        error, deviation = (preds - target).square().sum(), (target - target.mean()).square().sum()
        varies = (target != target[:1]).any()
        return torch.where(varies, 1 - error / deviation, torch.nan)
