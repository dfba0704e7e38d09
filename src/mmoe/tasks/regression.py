"""A task whose label is a number; see `Task` for the shapes.

T tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from mmoe.checks import fields as check
from mmoe.checks.arguments import check_finite
from mmoe.errors import ArgumentError
from mmoe.raw.numbers import numbers_of
from mmoe.tasks.task import MeanLoss, Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mmoe.metrics.resampled import ResampledMetrics

LOSSES: dict[str, Callable[..., Tensor]] = {"squared": mse_loss, "absolute": l1_loss, "huber": huber_loss}


@dataclass(frozen=True)
class Regression(Task):
    """A label that is a number. The network predicts its z-score; metrics are computed in the label's unit.

    Args:
        mean, std: mean and standard deviation of the training labels.
        loss: `squared`, `absolute` or `huber`, of the scaled error.
        huber_delta: where the Huber loss turns from squared to absolute, in standard deviations.

    Other arguments: see `Task`.
    """

    mean: float = field(default=0.0, kw_only=True)
    std: float = field(default=1.0, kw_only=True)
    loss: str = field(default="squared", kw_only=True)
    huber_delta: float = field(default=1.0, kw_only=True)

    kind = "regression"
    METRICS: ClassVar[Mapping[str, bool]] = {"mse": False, "rmse": False, "mae": False, "r2": True}
    holds_numbers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(
            mean=check.number(f"{self._at}.mean", self.mean),
            std=check.positive_number(f"{self._at}.std", self.std),
        )
        if self.loss not in LOSSES:
            raise ArgumentError(f"{self._at}.loss={self.loss}: must be one of {', '.join(LOSSES)}")
        (delta,) = check_finite(1e-6, **{f"{self._at}.huber_delta": self.huber_delta})
        self._store(huber_delta=delta)

    @property
    def is_scaled(self) -> bool:
        """Whether the network predicts (label - mean) / std rather than the label."""
        return (self.mean, self.std) != (0, 1)

    def fit(self, values: pd.Series) -> Self:
        """Set the mean and the standard deviation, rounded to float32; equal labels have the deviation 1."""
        numbers = numbers_of(values).astype(np.float64)
        self._check_known(not np.isnan(numbers).all())
        numbers = numbers[~np.isnan(numbers)]
        mean, std = np.float32(numbers.mean()), np.float32(numbers.std())
        is_constant = not std > 0 or numbers.min() == numbers.max()
        return replace(self, mean=float(mean), std=1.0 if is_constant else float(std))

    def encode(self, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        numbers = numbers_of(values).astype(np.float64)
        return np.nan_to_num(numbers).astype(np.float32), ~np.isnan(numbers)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        scaled = _standardise(labels, self.mean, self.std) if self.is_scaled else labels
        options = {"delta": self.huber_delta} if self.loss == "huber" else {}
        return LOSSES[self.loss](logits[..., 0], scaled, reduction="none", **options)

    @classmethod
    def mean_loss(cls, tasks: Sequence[Self]) -> MeanLoss | None:
        return ScaledSquaredError(tasks) if all(task.loss == "squared" for task in tasks) else None

    def activation(self, logits: Tensor) -> Tensor:
        return logits * self.std + self.mean if self.is_scaled else logits

    @staticmethod
    def average(logits: Tensor, weights: Tensor | None = None) -> Tensor:
        return logits.mean(0) if weights is None else (logits * weights).sum(0)

    def target_statistics(self, means: Tensor) -> Tensor:
        """The mean label."""
        return means

    def metrics(self, is_bounded: bool = False) -> "MetricCollection":
        from mmoe.metrics.by_kind import regression_metrics

        return regression_metrics(is_bounded)

    def resampled_metrics(self, predicted: np.ndarray, labels: np.ndarray) -> "ResampledMetrics":
        from mmoe.metrics.resampled import ResampledRegression

        return ResampledRegression(predicted[:, 0], labels)

    def undefined_metrics(self, labels: Tensor) -> tuple[str, ...]:
        if len(labels) and (labels == labels[0]).all():
            return ("r2",)
        return super().undefined_metrics(labels)


class ScaledSquaredError(nn.Module):
    """The mean squared error of several regressions, between logits and standardised labels.

    Shape:
        logits, labels: [..., T]; weights: [T]; output: a scalar.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tasks: Sequence[Regression]) -> None:
        super().__init__()
        self.is_scaled = any(task.is_scaled for task in tasks)
        for name in ("mean", "std"):
            values = torch.tensor([getattr(task, name) for task in tasks], dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the scale without casting it, because float16 has too few digits."""
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        labels = _standardise(labels, self.mean, self.std) if self.is_scaled else labels
        return (mse_loss(logits, labels, reduction="none") * weights).mean()


def _standardise(labels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """z-scores, computed in float32, because a label far from 0 would lose digits in half precision."""
    return ((labels.float() - mean) / std).to(labels.dtype)
