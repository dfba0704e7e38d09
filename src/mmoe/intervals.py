"""95 % confidence intervals: Student's t over runs, Efron's percentile bootstrap (1979) over rows.

K resamples, R replicas, N rows, T tasks, L logits of all tasks.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit
from tqdm import tqdm

from mmoe.metrics.resampled import ResampledMetrics
from mmoe.tasks import Task, logit_columns

BAGS = 8  # `sampled_intervals` cuts its sample into this many parts
ROUGH_RESAMPLES = 50  # of `rough_intervals`
ROUGH_WORK = 5 * 10**6  # `rough_intervals` uses at most this many resamples x rows x logits: about 0.1 s
CHUNK_SIZE = 2**17  # resamples x rows at a time, so that the arrays fit into the processor's cache


def half_interval(values: pd.Series) -> float:
    """Half the width of Student's t interval for the mean. Missing values do not count.

    It is nan for a single value.
    """
    values = values.dropna()
    if len(values) < 2:
        return float("nan")
    return float(stdtrit(len(values) - 1, 0.975) * values.std() / np.sqrt(len(values)))


def wilson_interval(share: Any, count: Any) -> tuple[Any, Any]:
    """The limits of Wilson's interval (1927) for a share in `count` draws; arrays give arrays."""
    z2 = float(ndtri(0.975)) ** 2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


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
) -> dict[str, list[ResampledMetrics]]:
    """The metrics of each replica, by task; the shapes are those of `bootstrap_intervals`."""
    predicted = predicted.reshape(-1, *predicted.shape[-2:])  # [R, N, L]
    shape = (*predicted.shape[:2], len(tasks))
    labels = np.broadcast_to(labels, shape)  # [R, N, T]
    masks = np.broadcast_to(True if known is None else known, shape)
    return {
        task.name: [
            _metrics_of_known(task, p[:, own], y[:, i], mask[:, i])
            for p, y, mask in zip(predicted, labels, masks, strict=True)
        ]
        for i, (task, own) in enumerate(zip(tasks, logit_columns(tasks), strict=True))
    }


def _mean_values(
    metrics: Mapping[str, Sequence[ResampledMetrics]], counts: np.ndarray
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


def rough_intervals(
    tasks: Sequence[Task], predicted: np.ndarray, labels: np.ndarray, known: np.ndarray
) -> dict[str, dict[str, float]]:
    """Half the width of an approximate 95 % interval of every metric, by task and metric, in about 0.1 s.

    It is the standard deviation over `ROUGH_RESAMPLES` resamples, times the quantile of Student's t. If there
    are many rows, only a random sample of m rows is resampled, and the deviation is multiplied by the square
    root of m / N (the m out of n bootstrap; Bickel, Goetze and van Zwet, 1997). If a metric is nan in some
    resample, as the AUROC of a rare label may be, its interval is nan.

    Shape:
        predicted: [N, L]; labels, known: [N, T].
    """
    num_rows, num_logits = predicted.shape
    size = min(num_rows, max(2, ROUGH_WORK // (ROUGH_RESAMPLES * num_logits)))
    rows = np.sort(np.random.default_rng(0).choice(num_rows, size, replace=False))
    metrics = _metrics_of(tasks, predicted[rows], labels[rows], known[rows])
    chunks = [_mean_values(metrics, counts) for counts in draw_rows(size, ROUGH_RESAMPLES, seed=0)]
    scale = float(stdtrit(ROUGH_RESAMPLES - 1, 0.975) * np.sqrt(size / num_rows))
    found: dict[str, dict[str, float]] = {}
    for task, metric in chunks[0]:
        values = np.concatenate([chunk[task, metric] for chunk in chunks])
        found.setdefault(task, {})[metric] = scale * float(values.std(ddof=1))
    return found


def _draw_many(size: int, num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw about `num_rows` rows from `size` rows. Yield how often each resample drew each row [1, size]."""
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield random.poisson(num_rows / size, (1, size))


def _metrics_of_known(
    task: Task, predicted: np.ndarray, labels: np.ndarray, known: np.ndarray
) -> ResampledMetrics:
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
