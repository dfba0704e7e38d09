"""A task whose label is positive or negative; see `Task` for the shapes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from mmoe.checks.arguments import check_finite
from mmoe.errors import ArgumentError, UserError
from mmoe.tasks.class_losses import ClassWeights, check_class_weights, fit_class_weights, focal
from mmoe.tasks.labels import count_levels, label_levels, sort_levels
from mmoe.tasks.task import SMALLEST_RATE, MeanLoss, Task, check_level_list, listed, log_shares, percent

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mmoe.metrics.resampled import ResampledMetrics

YES_AND_NO = (("0", "1"), ("false", "true"), ("no", "yes"))  # columns whose positive level is obvious
SAME_BOOLEAN = {"0": "false", "false": "0", "1": "true", "true": "1"}


@dataclass(frozen=True)
class Binary(Task):
    """A label that is positive or negative: one logit, whose sigmoid is the probability of a positive label.

    Args:
        positive: the levels of the column that count as positive. By default the larger level of a column
            of 0 and 1, false and true, or no and yes.
        class_weights: weights of the loss of negative and positive rows; `balanced` gives both classes the
            same sum of weights.
        focal_gamma: exponent of the focal loss (Lin et al., ICCV 2017); 0 gives the cross-entropy.

    Other arguments: see `Task`.
    """

    positive: tuple[str, ...] = ()
    class_weights: ClassWeights = field(default=None, kw_only=True)
    focal_gamma: float = field(default=0.0, kw_only=True)

    kind = "binary"
    METRICS: ClassVar[Mapping[str, bool]] = {
        "auroc": True, "average_precision": True, "log_loss": False, "brier": False,
        "calibration_error": False,
    }  # fmt: skip
    holds_numbers = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(positive=check_level_list(f"{self._at}.positive", self.positive or ()))
        self._store(class_weights=check_class_weights(self._at, self.class_weights, 2))
        self._store(focal_gamma=check_finite(0, **{f"{self._at}.focal_gamma": self.focal_gamma})[0])

    def check_fitted(self) -> None:
        super().check_fitted()
        if not self.positive:
            raise ArgumentError(f"{self._at}.positive=[]: must name at least one level of {self.column}")

    def fit(self, values: pd.Series) -> Self:
        return self.fit_counts(count_levels(values))

    def fit_counts(self, counts: Mapping[str, int]) -> Self:
        self._check_known(bool(counts))
        occurring = sort_levels(set(counts))
        task = replace(self, positive=self.positive or self._obvious_positive(occurring))
        for level in self.positive:
            # A column with a single level may hold only negative labels.
            if level not in occurring and (len(occurring) > 1 or len(self.positive) > 1):
                what = f"{level!r} is not a level of {self.column} in the training rows"
                raise UserError(f"data.{self._at}.positive: {what}; the levels are {listed(occurring)}")
        rows = np.zeros(2, np.int64)
        for level, count in counts.items():
            rows[int(level in task.positive)] += count
        return replace(task, class_weights=fit_class_weights(self.class_weights, rows))

    def _obvious_positive(self, levels: Sequence[str]) -> tuple[str, ...]:
        for negative, positive in YES_AND_NO:
            if {level.lower() for level in levels} <= {negative, positive}:
                return tuple(level for level in levels if level.lower() == positive) or (positive,)
        rule = f"must name the levels of {self.column} that count as positive"
        raise UserError(f"data.{self._at}.positive: {rule}; the levels are {listed(levels)}")

    def encode(self, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        codes, levels = label_levels(values)
        # One file may hold 0 and 1 where another one has booleans.
        positive = {*self.positive, *(SAME_BOOLEAN[one] for one in self.positive if one in SAME_BOOLEAN)}
        is_positive = np.array([*(level in positive for level in levels), False], np.float32)
        return is_positive[codes], codes >= 0

    def decode(self, labels: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        return labels.astype(np.int8) if known is None else super().decode(labels, known)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = binary_cross_entropy_with_logits(logits[..., 0], labels, reduction="none")
        losses = focal(entropy, self.focal_gamma)
        if self.class_weights:
            negative, positive = map(float, self.class_weights)
            losses = losses * (negative + (positive - negative) * labels)
        return losses

    @classmethod
    def mean_loss(cls, tasks: Sequence[Self]) -> MeanLoss | None:
        are_plain = not any(task.shifts_probabilities for task in tasks)
        return binary_cross_entropy_with_logits if are_plain else None

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def predict(self, logits: Tensor) -> Tensor:
        if logits.device.type == "cpu":
            # On a CPU, torch rounds the sigmoid of a tensor's last elements differently.
            return torch.from_numpy(expit(logits.detach().double().numpy()))
        return super().predict(logits)

    @staticmethod
    def average(logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """The logit of the mean probability, without overflow."""
        shares = log_shares(logits, weights)
        positive, negative = logsigmoid(logits) + shares, logsigmoid(-logits) + shares
        return positive.logsumexp(0) - negative.logsumexp(0)

    def target_statistics(self, means: Tensor) -> Tensor:
        """The logit of the rate of positive labels."""
        return means.logit(SMALLEST_RATE)

    def metrics(self, is_bounded: bool = False) -> "MetricCollection":
        from mmoe.metrics.by_kind import binary_metrics

        return binary_metrics(bool(self.group_by), is_bounded)

    def metric_inputs(self, predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return predicted[:, 0], labels.int()

    def resampled_metrics(self, predicted: np.ndarray, labels: np.ndarray) -> "ResampledMetrics":
        from mmoe.metrics.resampled import ResampledBinary

        return ResampledBinary(predicted[:, 0], labels)

    def undefined_metrics(self, labels: Tensor) -> tuple[str, ...]:
        if not len(labels) or 0 < labels.double().mean() < 1:
            return super().undefined_metrics(labels)
        return ("auroc",) if labels.any() else ("auroc", "average_precision")

    @property
    def shifts_probabilities(self) -> bool:
        return bool(self.class_weights or self.focal_gamma)

    def count_rarest(self, labels: np.ndarray) -> int:
        positive = int(np.count_nonzero(labels))
        return min(positive, len(labels) - positive)

    def describe_labels(self, labels: np.ndarray, quote: Callable[[str], str] = repr) -> str:
        return f"{percent(labels.mean())} positive ({', '.join(map(quote, self.positive))})"

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        return (f"{self.name}_probability",)

    @property
    def probability_column(self) -> str:
        return self.prediction_columns[0]
