"""A task whose label is one of several classes; see `Task` for the shapes."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mmoe.checks.arguments import check_finite
from mmoe.errors import ArgumentError
from mmoe.tasks.class_losses import ClassWeights, check_class_weights, fit_class_weights, focal
from mmoe.tasks.labels import count_levels, label_levels, sort_levels
from mmoe.tasks.task import SMALLEST_RATE, Task, check_level_list, listed, log_shares, percent

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mmoe.metrics.resampled import ResampledMetrics

log = logging.getLogger(__name__)


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
        self._store(class_weights=check_class_weights(self._at, self.class_weights, count))
        self._store(focal_gamma=check_finite(0, **{f"{self._at}.focal_gamma": self.focal_gamma})[0])

    def check_fitted(self) -> None:
        super().check_fitted()
        if not self.classes:
            raise ArgumentError(f"{self._at}.classes=[]: must name the classes of {self.column}")

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def fit(self, values: pd.Series) -> Self:
        return self.fit_counts(count_levels(values))

    def fit_counts(self, counts: Mapping[str, int]) -> Self:
        self._check_known(bool(counts))
        task = replace(self, classes=self.classes or sort_levels(set(counts)))
        rows = np.array([counts.get(level, 0) for level in task.classes], np.int64)
        return replace(task, class_weights=fit_class_weights(self.class_weights, rows))

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
        losses = focal(entropy, self.focal_gamma)
        if self.class_weights:
            weights = torch.tensor(list(map(float, self.class_weights)), device=logits.device)
            losses = losses * weights.to(losses.dtype)[classes]
        return losses

    def activation(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    @staticmethod
    def average(logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """The logarithm of the mean probabilities."""
        return (logits.log_softmax(-1) + log_shares(logits, weights)).logsumexp(0)

    def target_numbers(self, labels: Tensor) -> Tensor:
        return one_hot(labels.long(), len(self.classes)).to(labels.dtype)

    def target_statistics(self, means: Tensor) -> Tensor:
        """The logit of the rate of each class."""
        return means.logit(SMALLEST_RATE)

    def metrics(self, is_bounded: bool = False) -> "MetricCollection":
        from mmoe.metrics.by_kind import multiclass_metrics

        return multiclass_metrics(self.num_outputs, is_bounded)

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
    def shifts_probabilities(self) -> bool:
        return bool(self.class_weights or self.focal_gamma)

    def count_rarest(self, labels: np.ndarray) -> int:
        return int(self._count_classes(labels).min())

    def describe_labels(self, labels: np.ndarray, quote: Callable[[str], str] = repr) -> str:
        counts = self._count_classes(labels)
        largest = quote(self.classes[counts.argmax()])
        return f"{len(counts)} classes; {largest} has {percent(counts.max() / len(labels))}"

    def _count_classes(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels.astype(np.int64), minlength=len(self.classes))

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        return (f"{self.name}_class", *(f"{self.name}_probability_{one}" for one in self.classes))

    def table(self, predicted: np.ndarray) -> dict[str, np.ndarray]:
        chosen = np.array(self.classes, dtype=object)[predicted.argmax(-1)]
        return dict(zip(self.prediction_columns, [chosen, *predicted.T], strict=True))
