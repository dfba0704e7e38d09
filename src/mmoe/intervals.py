"""95 % confidence intervals: Student's t over runs, Efron's percentile bootstrap (1979) over rows.

K resamples, R replicas, N rows, T tasks, L logits of all tasks, W outputs of a task, P positive rows, G
groups: the rows of a group have equal predictions, and at least one of them is positive.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit, xlogy
from tqdm import tqdm

from mmoe.tasks import Task, logit_columns

CALIBRATION_BINS = 15  # of equal width
SMALLEST = 1e-30  # of predicted probabilities and counts in logarithms
CHUNK_SIZE = 2**17  # resamples x rows at a time, so that the arrays fit into the processor's cache
Metrics = Callable[[np.ndarray], dict[str, np.ndarray]]  # maps row counts [K, N] to values [K] by name


def half_interval(values: pd.Series) -> float:
    """Half the width of Student's t interval for the mean; nan for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stdtrit(len(values) - 1, 0.975) * values.std() / np.sqrt(len(values)))


def bootstrap_intervals(
    tasks: Sequence[Task],
    predicted: np.ndarray,
    labels: np.ndarray,
    resamples: int,
    seed: int = 0,
    known: np.ndarray | None = None,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Compute the bootstrap interval of every metric, by task and metric.

    All tasks and replicas share the same draws. With replicas, the metric is averaged over them first. A
    task's metrics are those of the drawn rows whose label is known.

    Shape:
        predicted: what `Task.predict` gives: [N, L], or [R, N, L] with replicas.
        labels, known: [N, T], or [R, N, T] if each replica has different rows; `known` may be None.
    """
    predicted = predicted.reshape(-1, *predicted.shape[-2:])  # [R, N, T]
    shape = (*predicted.shape[:2], len(tasks))
    labels = np.broadcast_to(labels, shape)  # [R, N, T]
    masks = np.broadcast_to(True if known is None else known, shape)
    metrics: list[list[Metrics]] = [  # [T][R]
        [
            _of_known(task, p[:, own], y[:, i], mask[:, i])
            for p, y, mask in zip(predicted, labels, masks, strict=True)
        ]
        for i, (task, own) in enumerate(zip(tasks, logit_columns(tasks), strict=True))
    ]
    chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in tasks]
    with tqdm(total=resamples, unit="resample", disable=None, delay=1) as bar:
        for counts in draw_rows(predicted.shape[1], resamples, seed):
            for task_chunks, replicas in zip(chunks, metrics, strict=True):
                values = [replica(counts) for replica in replicas]
                task_chunks.append({name: np.mean([v[name] for v in values], axis=0) for name in values[0]})
            bar.update(len(counts))
    return {
        task.name: {
            name: _percentiles(np.concatenate([c[name] for c in task_chunks])) for name in task_chunks[0]
        }
        for task, task_chunks in zip(tasks, chunks, strict=True)
    }


def _of_known(task: Task, predicted: np.ndarray, labels: np.ndarray, known: np.ndarray) -> Metrics:
    """The metrics of the rows [N] whose label is known, for row counts [K, N] of all rows."""
    if known.all():
        return task.resampled_metrics(predicted, labels)
    if not known.any():
        return lambda counts: {name: np.full(len(counts), np.nan) for name in task.METRICS}
    metrics, rows = task.resampled_metrics(predicted[known], labels[known]), np.flatnonzero(known)
    return lambda counts: metrics(counts.take(rows, axis=1))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentiles of the values, ignoring nan; nan if all values are nan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all values are nan
        low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def draw_rows(num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw N rows with replacement. Yield chunks [K, N]: how often each resample drew each row."""
    random = np.random.default_rng(seed)
    size = max(1, CHUNK_SIZE // num_rows)
    for start in range(0, resamples, size):
        counts = np.empty((min(size, resamples - start), num_rows), np.int32)
        for resample in counts:
            resample[:] = np.bincount(random.integers(num_rows, size=num_rows), minlength=num_rows)
        yield counts


class BinaryMetrics:
    """Compute the metrics of `Binary` for resamples of probabilities [N] and labels [N].

    AUROC is nan if all labels are equal; average precision is nan if no label is positive.
    """

    def __init__(self, probability: np.ndarray, label: np.ndarray) -> None:
        self.order = np.argsort(-probability, kind="stable")
        p, y = probability[self.order], label[self.order].astype(bool)
        self.positives = np.flatnonzero(y)
        positives_before = np.insert(np.cumsum(y), 0, 0)
        ends = np.append(np.flatnonzero(p[1:] != p[:-1]) + 1, len(p))
        starts = np.insert(ends[:-1], 0, 0)
        has_positives = positives_before[ends] > positives_before[starts]
        # Start and end of each group [G], as positions among all rows and among the positive rows.
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
        # Twice the number of negatives that rank higher than the group, where a tie counts one half.
        negatives = rows.take(self.starts, axis=1) - positives_before + (rows_up_to - positives_up_to)
        positives_in_group = (positives_up_to - positives_before).astype(np.float64)
        pairs = np.einsum("kg,kg->k", positives_in_group, negatives)
        precision = positives_up_to / np.maximum(rows_up_to, 1)
        precisions = np.einsum("kg,kg->k", positives_in_group, precision)
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


class MulticlassMetrics:
    """Compute the metrics of `Multiclass` for resamples of probabilities [N, W] and classes [N].

    AUROC is the mean over the classes that a resample has; it is nan if there is only one.
    """

    def __init__(self, probabilities: np.ndarray, label: np.ndarray) -> None:
        chosen = label.astype(np.int64)
        self.classes = [BinaryMetrics(probabilities[:, k], chosen == k) for k in np.unique(chosen)]
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


class RegressionMetrics:
    """Compute the metrics of `Regression` for resamples of predictions [N] and labels [N].

    R2 is nan if all labels are equal.
    """

    def __init__(self, number: np.ndarray, label: np.ndarray) -> None:
        number, label = number.astype(np.float64), label.astype(np.float64)
        self.error = np.square(number - label)
        self.label = label - label.mean()  # centred, so that its squares stay precise
        # A smaller variance is a rounding error: all labels of the resample are equal, and R2 is nan.
        self.min_variance = 1e-12 * np.square(self.label).mean() if (label != label[:1]).any() else np.inf

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics [K]. `counts` [K, N] says how often each resample drew each row."""
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = counts / counts.sum(1, keepdims=True)
            error = weights @ self.error
            variance = weights @ np.square(self.label) - np.square(weights @ self.label)
            r2 = np.where(variance > self.min_variance, 1 - error / variance, np.nan)
        return {"mse": error, "rmse": np.sqrt(error), "mae": weights @ np.sqrt(self.error), "r2": r2}


class CountMetrics:
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
    sums = np.zeros((len(counts), counts.shape[1] + 1), np.int32)
    np.cumsum(counts, axis=1, out=sums[:, 1:], dtype=np.int32)
    return sums
