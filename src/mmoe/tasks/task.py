"""What all kinds of tasks have in common.

A task owns its part of the logits, its loss, its predictions, its metrics and the names of its columns.

B batch, N rows, T tasks, W outputs of a task (its columns among the logits), M members of an ensemble, K
target statistics of a level of an input column.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmoe.checks import fields as check
from mmoe.errors import ArgumentError, UserError
from mmoe.metrics import GROUPED_AUROC
from mmoe.tasks.labels import level_text

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mmoe.metrics.resampled import ResampledMetrics

SMALLEST_WEIGHT = 1e-30  # its logarithm is finite
# Rates of levels are limited to [this, 1 - this] before a logit, and mean counts to at least this before a
# logarithm.
SMALLEST_RATE = 1e-6
WHERE_LEVELS = ("1", "true", "yes")  # levels of a `where` column in rows that have a label
# A function of logits [..., T], labels [..., T] and weights [T] that returns the mean of weights x losses.
MeanLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task(ABC):
    """What all kinds of tasks have in common.

    Args:
        column: the column that holds the label. A missing label is unknown: it counts neither in the loss
            nor in the metrics.
        name: names the task in metrics and predictions. `Schema` needs one.
        where: another column. The label is known only in rows where it is 1, true or yes. A mapping of the
            column to levels, such as `{plan: [gold, silver]}`, names other levels.
        where_levels: the levels of `where`; a mapping given as `where` sets them.
        weight: a column with the weight of each row in the task's loss, at least 0.
        group_by: a column with the group of each row. A data set's `group_by` sets it for binary tasks, which
            then have the metric `grouped_auroc`.

    Raises:
        ArgumentError: a value has the wrong type or is outside its range.
    """

    column: str
    name: str = field(default="", kw_only=True)
    where: str = field(default="", kw_only=True)
    where_levels: tuple[str, ...] = field(default=WHERE_LEVELS, kw_only=True)
    weight: str = field(default="", kw_only=True)
    group_by: str = field(default="", kw_only=True)

    kind: ClassVar[str]
    METRICS: ClassVar[Mapping[str, bool]]  # whether larger values are better; the first is the main metric
    holds_numbers: ClassVar[bool]  # whether the label column holds numbers rather than levels
    loss_may_be_negative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.where, Mapping):
            if len(self.where) != 1:
                raise ArgumentError(f"{self._at}.where={dict(self.where)}: must name one column")
            ((where, levels),) = self.where.items()
            self._store(where=where, where_levels=levels)
        for name in ("name", "where", "weight", "group_by"):
            value = getattr(self, name)
            self._store(**{name: check.text(f"{self._at}.{name}", value) if value else ""})
        self._store(column=check.text(f"{self._at}.column", self.column))
        self._store(where_levels=check_level_list(f"{self._at}.where", self.where_levels))

    @property
    def _at(self) -> str:
        """The task's place in a configuration, for errors."""
        return f"tasks.{self.name or self.column}"

    def _store(self, **values: Any) -> None:
        """Set fields while the frozen dataclass is being constructed."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def num_outputs(self) -> int:
        """W, the number of logits."""
        return 1

    @property
    def main_metric(self) -> str:
        """The metric that figures show. That of the first task also chooses the best epoch by default."""
        return next(iter(self.METRICS))

    @property
    def metric_names(self) -> Mapping[str, bool]:
        """The metrics of validation and test rows, and whether larger values are better."""
        return {**self.METRICS, GROUPED_AUROC: True} if self.group_by else self.METRICS

    @property
    def probability_column(self) -> str | None:
        """The column with the probability of the positive class, for tasks that have one."""
        return None

    def check_fitted(self) -> None:
        """Raise ArgumentError unless the task has a name and all that its labels need."""
        check.text("tasks.name", self.name)

    @abstractmethod
    def fit(self, values: pd.Series) -> Self:
        """The task with statistics of the training labels. Labels that are not known are missing in `values`.

        Raises:
            UserError: no label is known, or one is invalid.
        """

    def fit_counts(self, counts: Mapping[str, int]) -> Self:
        """As `fit`, for labels that are levels. `counts` has the number of training labels by level.

        Raises:
            UserError: as in `fit`.
        """
        raise NotImplementedError

    @abstractmethod
    def encode(self, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """The labels [N] in float32, 0 where they are unknown, and whether each is known [N].

        Raises:
            UserError: a label is invalid.
        """

    def decode(self, labels: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Labels [N] for a table: 0 or 1, the class, or the number; missing where they are unknown."""
        return labels if known is None else np.where(known, labels, np.float32(np.nan))

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The losses [..., B] of logits [..., B, W] and labels [..., B]."""

    @classmethod
    def mean_loss(cls, tasks: Sequence[Self]) -> MeanLoss | None:
        """A function that computes the mean loss of several tasks of this kind in one call, or None.

        It returns the mean of `losses` times the task weights over rows and tasks.
        """
        return None

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """Predictions [..., W] for logits [..., W], in the dtype of the logits."""

    def predict(self, logits: Tensor) -> Tensor:
        """Predictions [..., W] in float64, because float32 would tie rows that differ."""
        return self.activation(logits.double())

    @staticmethod
    @abstractmethod
    def average(logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """The logits [..., W] whose prediction is the mean prediction of the members' logits [M, ..., W].

        The weights [M, ..., 1] of the members sum to 1; None: all are equal.
        """

    def target_numbers(self, labels: Tensor) -> Tensor:
        """Turn labels [N] into numbers [N, K], whose means `target_statistics` takes."""
        return labels[:, None]

    @abstractmethod
    def target_statistics(self, means: Tensor) -> Tensor:
        """Turn means of `target_numbers` [..., K] into statistics [..., K], such as logits of rates.

        Each mean is over the rows with one level of an input column; see `mmoe.data.target_statistics`.
        """

    @abstractmethod
    def metrics(self, is_bounded: bool = False) -> "MetricCollection":
        """The metrics, to be updated with `metric_inputs`.

        With `is_bounded`, their memory does not grow with the rows, and areas are from binned predictions.
        """

    def metric_inputs(self, predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions [N, W] and labels [N] as `metrics` takes them."""
        return predicted[:, 0], labels.double()

    @abstractmethod
    def resampled_metrics(self, predicted: np.ndarray, labels: np.ndarray) -> "ResampledMetrics":
        """Metrics of resamples of predictions [N, W] and labels [N]; see `mmoe.metrics.resampled`."""

    def metric_values(self, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All metrics in `METRICS` of predictions [N, W] and labels [N]."""
        values = self.resampled_metrics(predicted, labels)(np.ones((1, len(labels)), np.int32))
        return {name: float(value[0]) for name, value in values.items()}

    def undefined_metrics(self, labels: Tensor) -> tuple[str, ...]:
        """The metrics in `METRICS` that are NaN for these known labels [N]."""
        return () if len(labels) else tuple(self.METRICS)

    @property
    def shifts_probabilities(self) -> bool:
        """Whether class weights or a focal loss move predicted probabilities away from the observed rates."""
        return False

    def count_rarest(self, labels: np.ndarray) -> int:
        """The number of known labels [N] of the rarest class; all of them if labels are numbers."""
        return len(labels)

    def describe_labels(self, labels: np.ndarray, quote: Callable[[str], str] = repr) -> str:
        """Known labels [N], at least one, in a few words; `quote` marks names of levels."""
        return f"mean {labels.mean():.4g}, standard deviation {labels.std():.4g}"

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """The names of the columns of `table`."""
        return (f"{self.name}_prediction",)

    def table(self, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """Predictions [N, W] as columns [N]."""
        return {self.prediction_columns[0]: predicted[:, 0]}

    def _check_known(self, has_known: bool) -> None:
        if not has_known:
            where = f" where {self.where} is one of {', '.join(self.where_levels)}" if self.where else ""
            rule = f"must have a label in at least one training row, but column {self.column} has none{where}"
            raise UserError(f"data.{self._at}: {rule}")


def log_shares(logits: Tensor, weights: Tensor | None) -> Tensor | float:
    """The logarithms of the members' weights, or of equal ones; see `Task.average`."""
    if weights is None:
        return -math.log(len(logits))
    # float16 rounds SMALLEST_WEIGHT to 0.
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return wide.clamp(min=SMALLEST_WEIGHT).log().to(weights.dtype)


def check_level_list(where: str, values: Any) -> tuple[str, ...]:
    """A list of levels as `level_text` gives them.

    Raises:
        ArgumentError: it is not a list, or holds anything but text, numbers and booleans.
    """
    for value in check.sequence(where, values):
        if not isinstance(value, str | Real | np.bool_):
            raise ArgumentError(f"{where}: must be a list of levels, holds {value!r}")
    return tuple(level_text(value) for value in values)


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.2f} %"


def listed(levels: Sequence[str]) -> str:
    """The first levels, for an error."""
    return ", ".join(map(repr, levels[:20])) + ", ..." * (len(levels) > 20)
