"""The metrics of each kind of task.

N rows, W outputs of a task.
"""

from torchmetrics import Metric, MetricCollection

from mmoe.metrics import GROUPED_AUROC
from mmoe.metrics.areas import Areas, BinnedAreas, BinnedMacroAUROC, MacroAUROC
from mmoe.metrics.bounded import RunningR2, SampledGroupedAUROC
from mmoe.metrics.exact import (
    R2,
    CalibrationError,
    RootMeanSquaredError,
    RowMean,
    absolute_error,
    cross_entropy,
    is_most_probable,
    log_loss,
    poisson_deviance,
    squared_error,
)
from mmoe.metrics.grouped_auroc import GroupedAUROC


def binary_metrics(are_grouped: bool = False, is_bounded: bool = False) -> MetricCollection:
    """Metrics of probabilities [N] and labels [N], 0 or 1, and perhaps groups [N]; see `Binary.METRICS`."""
    by_group = SampledGroupedAUROC() if is_bounded else GroupedAUROC()
    grouped: dict[str, Metric] = {GROUPED_AUROC: by_group} if are_grouped else {}
    return _collection(
        areas=BinnedAreas() if is_bounded else Areas(),  # auroc and average_precision
        log_loss=RowMean(log_loss),
        brier=RowMean(squared_error),
        calibration_error=CalibrationError(),
        **grouped,
    )


def multiclass_metrics(num_classes: int, is_bounded: bool = False) -> MetricCollection:
    """Metrics of probabilities [N, W] and classes [N]; see `Multiclass.METRICS`."""
    auroc = BinnedMacroAUROC(num_classes) if is_bounded else MacroAUROC()
    return _collection(auroc=auroc, accuracy=RowMean(is_most_probable), log_loss=RowMean(cross_entropy))


def regression_metrics(is_bounded: bool = False) -> MetricCollection:
    """Metrics of predictions [N] and labels [N]; see `Regression.METRICS`."""
    return _collection(
        mse=RowMean(squared_error),
        rmse=RootMeanSquaredError(),
        mae=RowMean(absolute_error),
        r2=RunningR2() if is_bounded else R2(),
    )


def count_metrics() -> MetricCollection:
    """Metrics of expected counts [N] and labels [N]; see `Count.METRICS`."""
    return _collection(
        poisson_deviance=RowMean(poisson_deviance),
        mae=RowMean(absolute_error),
        rmse=RootMeanSquaredError(),
    )


def _collection(**metrics: Metric) -> MetricCollection:
    # torchmetrics itself would put metrics into one group if their states are equal after the first update.
    # After an update without rows, all states are equal.
    return MetricCollection(dict(metrics), compute_groups=False)
