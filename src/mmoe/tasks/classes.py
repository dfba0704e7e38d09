"""Tasks whose label is a class: one of two, or one of several.

B batch, N rows, T tasks, W outputs of a task, M members of an ensemble.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from mmoe.errors import ArgumentError, UserError, check_finite, is_number
from mmoe.tasks.labels import label_levels, sort_levels
from mmoe.tasks.task import MeanLoss, Task, check_level_list, listed

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mmoe.metrics.resampled import ResampledMetrics

log = logging.getLogger(__name__)

YES_AND_NO = (("0", "1"), ("false", "true"), ("no", "yes"))  # columns whose positive level is obvious
SAME_BOOLEAN = {"0": "false", "false": "0", "1": "true", "true": "1"}
BALANCED = "balanced"
ClassWeights = str | tuple[float, ...] | None


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
        self._store(class_weights=_check_class_weights(self._at, self.class_weights, 2))
        self._store(focal_gamma=check_finite(0, **{f"{self._at}.focal_gamma": self.focal_gamma})[0])

    def check_fitted(self) -> None:
        super().check_fitted()
        if not self.positive:
            raise ArgumentError(f"{self._at}.positive=[]: must name at least one level of {self.column}")

    def fit(self, values: pd.Series) -> Self:
        return self.fit_counts(_count_levels(values))

    def fit_counts(self, counts: Mapping[str, int]) -> Self:
        self._check_known(bool(counts))
        occurring = sort_levels(set(counts))
        task = replace(self, positive=self.positive or self._obvious_positive(occurring))
        for level in self.positive:
            # A column with a single level may hold only negative labels.
            if level not in occurring and (len(occurring) > 1 or len(self.positive) > 1):
                what = f"{level!r} is not a level of {self.column} in the training file"
                raise UserError(f"data.{self._at}.positive: {what}; the levels are {listed(occurring)}")
        rows = np.zeros(2, np.int64)
        for level, count in counts.items():
            rows[int(level in task.positive)] += count
        return replace(task, class_weights=_fit_class_weights(self.class_weights, rows))

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
        losses = _focal(entropy, self.focal_gamma)
        if self.class_weights:
            negative, positive = map(float, self.class_weights)
            losses = losses * (negative + (positive - negative) * labels)
        return losses

    @classmethod
    def mean_loss(cls, tasks: Sequence[Self]) -> MeanLoss | None:
        are_plain = not any(task.class_weights or task.focal_gamma for task in tasks)
        return binary_cross_entropy_with_logits if are_plain else None

    def activation(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def predict(self, logits: Tensor) -> Tensor:
        if logits.device.type == "cpu":
            # On a CPU, torch rounds the sigmoid of a tensor's last elements differently.
            return torch.from_numpy(expit(logits.double().numpy()))
        return super().predict(logits)

    @staticmethod
    def average(logits: Tensor) -> Tensor:
        """The logit of the mean probability, without overflow."""
        return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)

    def metrics(self, is_binned: bool = False) -> "MetricCollection":
        from mmoe.metrics.by_kind import binary_metrics

        return binary_metrics(bool(self.group_by), is_binned)

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
    def prediction_columns(self) -> tuple[str, ...]:
        return (f"{self.name}_probability",)

    @property
    def probability_column(self) -> str:
        return self.prediction_columns[0]


@dataclass(frozen=True)
class Multiclass(Task):
    """A label that is one of several classes: a logit for each, whose softmax gives the probabilities.

    Args:
        classes: the classes, sorted; by default those of the training labels. In other rows, the label is
            unknown if it is none of them.
        class_weights: weights of the loss by class, in the order of `classes`; `balanced` gives all classes
            the same sum of weights.
        focal_gamma: exponent of the focal loss; 0 gives the cross-entropy.

    Other arguments: see `Task`.
    """

    classes: tuple[str, ...] = ()
    class_weights: ClassWeights = field(default=None, kw_only=True)
    focal_gamma: float = field(default=0.0, kw_only=True)

    kind = "multiclass"
    METRICS: ClassVar[Mapping[str, bool]] = {"auroc": True, "accuracy": True, "log_loss": False}
    holds_numbers = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(classes=check_level_list(f"{self._at}.classes", self.classes or ()))
        if self.classes != sort_levels(set(self.classes)):
            raise ArgumentError(f"{self._at}.classes={listed(self.classes)}: must be unique and sorted")
        count = len(self.classes) or None
        self._store(class_weights=_check_class_weights(self._at, self.class_weights, count))
        self._store(focal_gamma=check_finite(0, **{f"{self._at}.focal_gamma": self.focal_gamma})[0])

    def check_fitted(self) -> None:
        super().check_fitted()
        if not self.classes:
            raise ArgumentError(f"{self._at}.classes=[]: must name the classes of {self.column}")

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def fit(self, values: pd.Series) -> Self:
        return self.fit_counts(_count_levels(values))

    def fit_counts(self, counts: Mapping[str, int]) -> Self:
        self._check_known(bool(counts))
        task = replace(self, classes=self.classes or sort_levels(set(counts)))
        rows = np.array([counts.get(level, 0) for level in task.classes], np.int64)
        return replace(task, class_weights=_fit_class_weights(self.class_weights, rows))

    def encode(self, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        codes, levels = label_levels(values)
        number = {level: i for i, level in enumerate(self.classes)}
        lookup = np.array([*(number.get(level, -1) for level in levels), -1])
        labels = lookup[codes]
        unseen = (labels < 0) & (codes >= 0)
        if unseen.any():
            example = levels[codes[np.argmax(unseen)]]
            log.warning(
                "column %s: %d rows have a class that training did not see, such as %r; their label of task"
                " %s counts as unknown", self.column, unseen.sum(), example, self.name,
            )  # fmt: skip
        return labels.clip(0).astype(np.float32), labels >= 0

    def decode(self, labels: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        names = np.array([*self.classes, None], dtype=object)
        codes = labels.astype(np.int64)
        found: np.ndarray = names[codes if known is None else np.where(known, codes, -1)]
        return found

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        classes = labels.long()
        entropy = -logits.log_softmax(-1).gather(-1, classes.unsqueeze(-1))[..., 0]
        losses = _focal(entropy, self.focal_gamma)
        if self.class_weights:
            weights = torch.tensor(list(map(float, self.class_weights)), device=logits.device)
            losses = losses * weights.to(losses.dtype)[classes]
        return losses

    def activation(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    @staticmethod
    def average(logits: Tensor) -> Tensor:
        """The logarithm of the mean probabilities, up to a constant."""
        return logits.log_softmax(-1).logsumexp(0)

    def metrics(self, is_binned: bool = False) -> "MetricCollection":
        from mmoe.metrics.by_kind import multiclass_metrics

        return multiclass_metrics(self.num_outputs, is_binned)

    def metric_inputs(self, predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return predicted, labels.long()

    def resampled_metrics(self, predicted: np.ndarray, labels: np.ndarray) -> "ResampledMetrics":
        from mmoe.metrics.resampled import ResampledMulticlass

        return ResampledMulticlass(predicted, labels)

    def undefined_metrics(self, labels: Tensor) -> tuple[str, ...]:
        if len(labels) and (labels == labels[0]).all():
            return ("auroc",)
        return super().undefined_metrics(labels)

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        return (f"{self.name}_class", *(f"{self.name}_probability_{one}" for one in self.classes))

    def table(self, predicted: np.ndarray) -> dict[str, np.ndarray]:
        chosen = np.array(self.classes, dtype=object)[predicted.argmax(-1)]
        return dict(zip(self.prediction_columns, [chosen, *predicted.T], strict=True))


def _check_class_weights(at: str, weights: Any, count: int | None) -> ClassWeights:
    """The weights of `count` classes; None: of any number of classes."""
    if weights is None or weights == BALANCED:
        return weights  # type: ignore[no-any-return]
    where = f"{at}.class_weights"
    if not isinstance(weights, list | tuple) or not all(is_number(weight, Real) for weight in weights):
        raise ArgumentError(f"{where}={weights}: must be balanced, or a list with a number for each class")
    if count is not None and len(weights) != count:
        raise ArgumentError(f"{where}={list(weights)}: must have {count} numbers, one for each class")
    return tuple(check_finite(0, **{where: weight})[0] for weight in weights)


def _count_levels(values: pd.Series) -> dict[str, int]:
    """The number of rows by level, without missing ones."""
    codes, levels = label_levels(values)
    counts = np.bincount(codes[codes >= 0], minlength=len(levels)).tolist()
    return {level: count for level, count in zip(levels, counts, strict=True) if count}


def _fit_class_weights(weights: ClassWeights, counts: np.ndarray) -> ClassWeights:
    """Replace `balanced` by numbers whose mean over the training rows is 1; `counts` are rows by class."""
    if weights != BALANCED:
        return weights
    return tuple((counts.sum() / (np.count_nonzero(counts) * counts.clip(1))).tolist())


def _focal(entropy: Tensor, gamma: float) -> Tensor:
    """The focal loss for cross-entropies: (1 - p)^gamma x entropy, where p = exp(-entropy)."""
    if not gamma:
        return entropy
    # The clamp keeps the gradient of the power finite at p = 1.
    return (-torch.expm1(-entropy)).clamp_min(1e-6) ** gamma * entropy
