"""95 % confidence intervals: Student's t over runs, Efron's percentile bootstrap (1979) over rows.

K resamples, R replicas, N rows, T tasks, P positive rows, G groups: the rows of a group have equal
predictions, and at least one of them is positive.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from tqdm import tqdm

from mmoe.data.schema import Task

CHUNK_SIZE = 2**17  # resamples x rows at a time, so that the arrays fit into the processor's cache
Metrics = Callable[[np.ndarray], dict[str, np.ndarray]]  # maps row counts [K, N] to values [K] by name


def half_interval(values: pd.Series) -> float:
    """Half the width of Student's t interval for the mean; nan for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stdtrit(len(values) - 1, 0.975) * values.std() / np.sqrt(len(values)))


def bootstrap_intervals(
    tasks: Sequence[Task], predicted: np.ndarray, labels: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """Compute the bootstrap interval of every metric, by task and metric.

    All tasks and replicas share the same draws. With replicas, the metric is averaged over them first.

    Shape:
        predicted: probabilities or, for a regression, numbers: [N, T], or [R, N, T] with replicas.
        labels: [N, T], or [R, N, T] if each replica has different rows.
    """
    predicted = predicted.reshape(-1, *predicted.shape[-2:])  # [R, N, T]
    labels = np.broadcast_to(labels, predicted.shape)
    metrics: list[list[Metrics]] = [  # [T][R]
        [
            BinaryMetrics(p[:, i], y[:, i]) if task.is_binary else RegressionMetrics(p[:, i], y[:, i])
            for p, y in zip(predicted, labels, strict=True)
        ]
        for i, task in enumerate(tasks)
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
    """Compute AUROC, average precision and log loss for resamples of probabilities [N] and labels [N].

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
        log_loss = drawn @ self.loss / counts.shape[1]
        return {"auroc": auroc, "average_precision": average_precision, "log_loss": log_loss}


class RegressionMetrics:
    """Compute mean squared error and R2 for resamples of predictions [N] and labels [N].

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
        weights = counts / counts.shape[1]
        error = weights @ self.error
        variance = weights @ np.square(self.label) - np.square(weights @ self.label)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(variance > self.min_variance, 1 - error / variance, np.nan)
        return {"mse": error, "r2": r2}


def _cumulative(counts: np.ndarray) -> np.ndarray:
    """Return cumulative sums along each row with a leading 0: [K, columns + 1]."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), np.int32)
    np.cumsum(counts, axis=1, out=sums[:, 1:], dtype=np.int32)
    return sums
