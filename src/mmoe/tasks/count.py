"""A task whose label is a count; see `Task` for the shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd
from torch import Tensor

from mmoe.checks import fields as check
from mmoe.errors import RowError
from mmoe.raw.numbers import numbers_of
from mmoe.tasks.task import SMALLEST_RATE, Task, log_shares

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mmoe.metrics.resampled import ResampledMetrics


@dataclass(frozen=True)
class Count(Task):
    """A label that is a whole number of at least 0. The network predicts the logarithm of the expected count.

    The logit is relative to the mean of the training labels, so the prediction is mean x exp(logit). The loss
    is the negative log likelihood of a Poisson distribution, without the terms that do not depend on the
    logit. It is divided by the mean if that is above 1, so that large counts do not drown other tasks.

    Args:
        mean: mean of the training labels.

    Other arguments: see `Task`.
    """

    mean: float = field(default=1.0, kw_only=True)

    kind = "count"
    METRICS: ClassVar[Mapping[str, bool]] = {"poisson_deviance": False, "mae": False, "rmse": False}
    holds_numbers = True
    loss_may_be_negative = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(mean=check.positive_number(f"{self._at}.mean", self.mean))

    def fit(self, values: pd.Series) -> Self:
        """Set the mean, rounded to float32; it is 1 if all labels are 0."""
        labels, known = self.encode(values)
        self._check_known(bool(known.any()))
        return replace(self, mean=float(np.float32(labels[known].mean(dtype=np.float64))) or 1.0)

    def encode(self, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        numbers = numbers_of(values).astype(np.float64)
        wrong = (numbers < 0) | (numbers != np.round(numbers)) & ~np.isnan(numbers)
        if wrong.any():
            row = int(np.argmax(wrong))
            rule = "must be a count, a whole number of at least 0"
            raise RowError(self.column, row, f"{rule}, is {numbers[row]:g}")
        return np.nan_to_num(numbers).astype(np.float32), ~np.isnan(numbers)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, scale = logits[..., 0], max(self.mean, 1.0)
        return (self.mean / scale) * logits.exp() - labels / scale * logits

    def activation(self, logits: Tensor) -> Tensor:
        return logits.exp() * self.mean

    @staticmethod
    def average(logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """The logarithm of a quotient: the members' mean count divided by `mean`."""
        return (logits + log_shares(logits, weights)).logsumexp(0)

    def target_statistics(self, means: Tensor) -> Tensor:
        """The logarithm of the mean count."""
        return means.clamp(min=SMALLEST_RATE).log()

    def metrics(self, is_bounded: bool = False) -> "MetricCollection":
        from mmoe.metrics.by_kind import count_metrics

        return count_metrics()

    def resampled_metrics(self, predicted: np.ndarray, labels: np.ndarray) -> "ResampledMetrics":
        from mmoe.metrics.resampled import ResampledCount

        return ResampledCount(predicted[:, 0], labels)
