"""95 % confidence intervals: Student's t over runs, Efron's percentile bootstrap (1979) over rows.

K resamples, R replicas, N rows, T tasks, L logits of all tasks, W outputs of a task, P positive rows, G
groups: the rows of a group have equal predictions, and at least one of them is positive.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit, xlogy
from tqdm import tqdm

from mmoe.tasks import Task, logit_columns

CALIBRATION_BINS = 15  # of equal width
SMALLEST = 1e-30  # smaller probabilities and counts are raised to this before a logarithm
BAGS = 8  # `sampled_intervals` cuts its sample into so many parts
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
    metrics = _metrics_of(tasks, predicted, labels, known)
    chunks: list[dict[tuple[str, str], np.ndarray]] = []
    with tqdm(total=resamples, unit="resample", disable=None, delay=1) as bar:
        for counts in draw_rows(predicted.shape[-2], resamples, seed):
            chunks.append(_mean_values(metrics, counts))
            bar.update(len(counts))
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for task, metric in chunks[0]:
        values = np.concatenate([chunk[task, metric] for chunk in chunks])
        found.setdefault(task, {})[metric] = _percentiles(values)
    return found


def _metrics_of(
    tasks: Sequence[Task], predicted: np.ndarray, labels: np.ndarray, known: np.ndarray | None
) -> dict[str, list[Metrics]]:
    """The metrics of each replica, by task; the shapes are those of `bootstrap_intervals`."""
    predicted = predicted.reshape(-1, *predicted.shape[-2:])  # [R, N, L]
    shape = (*predicted.shape[:2], len(tasks))
    labels = np.broadcast_to(labels, shape)  # [R, N, T]
    masks = np.broadcast_to(True if known is None else known, shape)
    return {
        task.name: [
            _of_known(task, p[:, own], y[:, i], mask[:, i])
            for p, y, mask in zip(predicted, labels, masks, strict=True)
        ]
        for i, (task, own) in enumerate(zip(tasks, logit_columns(tasks), strict=True))
    }


def _mean_values(
    metrics: Mapping[str, Sequence[Metrics]], counts: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """The metrics [K] for row counts [K, N], by task and metric, averaged over replicas."""
    found = {}
    for task, replicas in metrics.items():
        values = [replica(counts) for replica in replicas]
        for name in values[0]:
            found[task, name] = np.mean([own[name] for own in values], axis=0)
    return found


def sampled_intervals(
    tasks: Sequence[Task],
    predicted: np.ndarray,
    labels: np.ndarray,
    resamples: int,
    seed: int,
    known: np.ndarray | None,
    num_rows: int,
    estimates: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, tuple[float, float]]]:
    """The bootstrap intervals of metrics of `num_rows` rows, from a random sample of the rows.

    This is the bag of little bootstraps (Kleiner et al., 2014): the sample is cut into `BAGS` parts. In each,
    a resample draws `num_rows` rows. The distances from the metric of the part to the ends of its interval
    are averaged over the parts, and added to the metric of all rows, which `estimates` holds by task.

    Shapes are those of `bootstrap_intervals`, with the rows of the sample.
    """
    ends: dict[tuple[str, str], list[np.ndarray]] = {}
    for bag in range(BAGS):
        rows = slice(bag, None, BAGS)
        own_labels, own_known = labels[..., rows, :], None if known is None else known[..., rows, :]
        metrics = _metrics_of(tasks, predicted[..., rows, :], own_labels, own_known)
        size = len(range(*rows.indices(labels.shape[-2])))
        whole = _mean_values(metrics, np.ones((1, size), np.int64))
        draws = _draw_many(size, num_rows, max(2, resamples // BAGS), seed + bag)
        drawn = [_mean_values(metrics, counts) for counts in draws]
        for name, value in whole.items():
            interval = _percentiles(np.concatenate([values[name] for values in drawn]))
            ends.setdefault(name, []).append(np.array(interval) - value)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for (task, metric), distances in ends.items():
        low, high = (estimates[task][metric] + np.mean(distances, axis=0)).tolist()
        found.setdefault(task, {})[metric] = (low, high)
    return found


def _draw_many(size: int, num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw about `num_rows` rows from `size` rows. Yield how often each resample drew each row [1, size]."""
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield random.poisson(num_rows / size, (1, size))


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
    sums = np.zeros((len(counts), counts.shape[1] + 1), counts.dtype)
    np.cumsum(counts, axis=1, out=sums[:, 1:], dtype=counts.dtype)
    return sums
