"""Metrics of many resamples of the same rows at once, for bootstrap intervals.

K resamples, N rows, W outputs of a task, P positive rows, G ties. A tie is all rows with the same prediction;
ties without a positive row are left out.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.special import xlogy

from mmoe.metrics import CALIBRATION_BINS, SMALLEST

ResampledMetrics = Callable[[np.ndarray], dict[str, np.ndarray]]  # row counts [K, N] to values [K] by name


class ResampledBinary:
    """Compute the metrics of `Binary` for resamples of probabilities [N] and labels [N].

    AUROC is NaN if all labels are equal; average precision is NaN if no label is positive.
    """

    def __init__(self, probability: np.ndarray, label: np.ndarray) -> None:
        self.order = np.argsort(-probability, kind="stable")
        p, y = probability[self.order], label[self.order].astype(bool)
        self.positives = np.flatnonzero(y)
        positives_before = np.insert(np.cumsum(y), 0, 0)
        ends = np.append(np.flatnonzero(p[1:] != p[:-1]) + 1, len(p))
        starts = np.insert(ends[:-1], 0, 0)
        has_positives = positives_before[ends] > positives_before[starts]
        # Start and end of each tie [G], as positions among all rows and among the positive rows.
        self.starts, self.ends = starts[has_positives], ends[has_positives]
        self.positive_starts, self.positive_ends = positives_before[self.starts], positives_before[self.ends]
        with np.errstate(divide="ignore"):
            self.loss = -np.where(y, np.log(p), np.log1p(-p)).clip(-100)  # like torch's binary_cross_entropy
        self.squared_error = np.square(p - y)
        bins = (p * CALIBRATION_BINS).astype(np.int64).clip(0, CALIBRATION_BINS - 1)
        self.deviations = np.zeros((len(p), CALIBRATION_BINS))  # label minus probability, in the row's bin
        self.deviations[np.arange(len(p)), bins] = y - p

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics [K]. `counts` [K, N] says how often each resample drew each row."""
        drawn = counts.take(self.order, axis=1)
        rows = _cumulative(drawn)  # [K, N + 1]
        positives = _cumulative(drawn.take(self.positives, axis=1))  # [K, P + 1]
        positives_before = positives.take(self.positive_starts, axis=1)  # [K, G]
        positives_up_to = positives.take(self.positive_ends, axis=1)
        rows_up_to = rows.take(self.ends, axis=1)
        # Twice the number of negatives that rank higher than the tie, where those in the tie count one half.
        negatives = rows.take(self.starts, axis=1) - positives_before + (rows_up_to - positives_up_to)
        positives_in_tie = (positives_up_to - positives_before).astype(np.float64)
        pairs = np.einsum("kg,kg->k", positives_in_tie, negatives)
        precision = positives_up_to / np.maximum(rows_up_to, 1)
        precisions = np.einsum("kg,kg->k", positives_in_tie, precision)
        total = positives[:, -1].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = 1 - pairs / (2 * total * (rows[:, -1] - total))
            average_precision = precisions / total
            drawn_rows = rows[:, -1].astype(np.float64)
            return {
                "auroc": auroc,
                "average_precision": average_precision,
                "log_loss": drawn @ self.loss / drawn_rows,
                "brier": drawn @ self.squared_error / drawn_rows,
                "calibration_error": np.abs(drawn @ self.deviations).sum(1) / drawn_rows,
            }


class ResampledMulticlass:
    """Compute the metrics of `Multiclass` for resamples of probabilities [N, W] and classes [N].

    AUROC is the mean over the classes that a resample has; it is NaN if there is only one.
    """

    def __init__(self, probabilities: np.ndarray, label: np.ndarray) -> None:
        chosen = label.astype(np.int64)
        self.classes = [ResampledBinary(probabilities[:, k], chosen == k) for k in np.unique(chosen)]
        self.is_right = (probabilities.argmax(1) == chosen).astype(np.float64)
        own = probabilities[np.arange(len(chosen)), chosen]
        self.loss = -np.log(own.clip(SMALLEST))

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics [K]. `counts` [K, N] says how often each resample drew each row."""
        areas = np.stack([one(counts)["auroc"] for one in self.classes])  # [classes, K]
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample may have one class only
            rows = counts.sum(1).astype(np.float64)
            return {
                "auroc": np.nanmean(areas, axis=0),
                "accuracy": counts @ self.is_right / rows,
                "log_loss": counts @ self.loss / rows,
            }


class ResampledRegression:
    """Compute the metrics of `Regression` for resamples of predictions [N] and labels [N].

    R2 is NaN if all labels are equal.
    """

    def __init__(self, number: np.ndarray, label: np.ndarray) -> None:
        number, label = number.astype(np.float64), label.astype(np.float64)
        self.error = np.square(number - label)
        self.label = label - label.mean()  # centred, so that its squares stay precise
        # A smaller variance is a rounding error: all labels of the resample are equal, and R2 is NaN.
        self.min_variance = 1e-12 * np.square(self.label).mean() if (label != label[:1]).any() else np.inf

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics [K]. `counts` [K, N] says how often each resample drew each row."""
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = counts / counts.sum(1, keepdims=True)
            error = weights @ self.error
            variance = weights @ np.square(self.label) - np.square(weights @ self.label)
            r2 = np.where(variance > self.min_variance, 1 - error / variance, np.nan)
        return {"mse": error, "rmse": np.sqrt(error), "mae": weights @ np.sqrt(self.error), "r2": r2}


class ResampledCount:
    """Compute the metrics of `Count` for resamples of expected counts [N] and labels [N]."""

    def __init__(self, expected: np.ndarray, label: np.ndarray) -> None:
        mu, y = expected.astype(np.float64), label.astype(np.float64)
        self.deviance = 2 * (xlogy(y, y / mu.clip(SMALLEST)) - y + mu.clip(SMALLEST))
        self.error = np.abs(mu - y)

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics [K]. `counts` [K, N] says how often each resample drew each row."""
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = counts / counts.sum(1, keepdims=True)
        return {
            "poisson_deviance": weights @ self.deviance,
            "mae": weights @ self.error,
            "rmse": np.sqrt(weights @ np.square(self.error)),
        }


def _cumulative(counts: np.ndarray) -> np.ndarray:
    """Return cumulative sums along each row with a leading 0: [K, columns + 1]."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), counts.dtype)
    np.cumsum(counts, axis=1, out=sums[:, 1:], dtype=counts.dtype)
    return sums
