"""How far a metric would move on other rows: bootstrap intervals (Efron, 1979, percentile method).

K resamples, N rows, P rows with a positive label, G groups of these with equal predictions.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmoe.data.schema import Task

CELLS = 2**17  # resamples times rows at a time: their arrays stay in the processor's cache
Metrics = Callable[[np.ndarray], dict[str, np.ndarray]]  # of resamples, [K] each, by counts [K, N]


def intervals(
    tasks: Sequence[Task], predicted: np.ndarray, labels: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % intervals by task and metric, from metrics of rows drawn with replacement.

    All tasks and replicas see the same draws. Of replicas it is the interval of their mean.

    Args:
        tasks: T of them.
        predicted: probabilities or numbers [N, T], or [R, N, T] of replicas.
        labels: of the same shape, or [N, T] where replicas share the rows.
        resamples: K.
        seed: of the draws.
    """
    predicted = predicted.reshape(-1, *predicted.shape[-2:])
    labels = np.broadcast_to(labels, predicted.shape)
    metrics: list[list[Metrics]] = [
        [
            Ranking(p[:, i], y[:, i]) if task.is_binary else Errors(p[:, i], y[:, i])
            for p, y in zip(predicted, labels, strict=True)
        ]
        for i, task in enumerate(tasks)
    ]
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in tasks]
    with tqdm(total=resamples, unit="resample", disable=None, delay=1) as bar:
        for counts in draws(predicted.shape[1], resamples, seed):
            for of_task, replicas in zip(parts, metrics, strict=True):
                every = [replica(counts) for replica in replicas]
                of_task.append({name: np.mean([one[name] for one in every], axis=0) for name in every[0]})
            bar.update(len(counts))
    return {
        task.name: {name: _interval(np.concatenate([part[name] for part in of_task])) for name in of_task[0]}
        for task, of_task in zip(tasks, parts, strict=True)
    }


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of those that are defined; nan where none is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no values
        low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def draws(num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row was drawn, [some, N], for `resamples` draws of N rows in all."""
    random = np.random.default_rng(seed)
    size = max(1, CELLS // num_rows)
    for start in range(0, resamples, size):
        counts = np.empty((min(size, resamples - start), num_rows), np.int32)
        for one in counts:
            one[:] = np.bincount(random.integers(num_rows, size=num_rows), minlength=num_rows)
        yield counts


class Segment(NamedTuple):
    """Consecutive rows in the order of their predictions; no group of ties crosses an end.

    Shape:
        order: [N], which rows; loss: [N]; positives: [P], which of `order` have a positive label.
        starts, ends: [G], where groups with positives begin and end, in `order`; those in `positives` too.
    """

    order: np.ndarray
    loss: np.ndarray
    positives: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    starts_of_positives: np.ndarray
    ends_of_positives: np.ndarray

    @classmethod
    def of(cls, order: np.ndarray, probability: np.ndarray, label: np.ndarray) -> "Segment":
        """That of rows [N] with these predictions and labels."""
        p, y = probability[order], label[order].astype(bool)
        ends = np.append(np.flatnonzero(p[1:] != p[:-1]) + 1, len(p))
        starts, positives = np.insert(ends[:-1], 0, 0), np.insert(np.cumsum(y), 0, 0)
        some = positives[ends] > positives[starts]
        starts, ends = starts[some], ends[some]
        with np.errstate(divide="ignore"):
            loss = -np.where(y, np.log(p), np.log1p(-p)).clip(-100)  # as torch's binary_cross_entropy
        return cls(order, loss, np.flatnonzero(y), starts, ends, positives[starts], positives[ends])


class Ranking:
    """Area under the ROC curve, average precision and log loss of resamples.

    A resample without rows of both classes has no areas: nan.

    Args:
        probability: [N].
        label: [N], 0 or 1.
    """

    def __init__(self, probability: np.ndarray, label: np.ndarray) -> None:
        order = np.argsort(-probability, kind="stable")
        changes = np.flatnonzero(np.diff(probability[order])) + 1  # where groups of ties begin
        wanted = np.searchsorted(changes, np.arange(CELLS, len(order), CELLS))
        starts = np.unique(changes[wanted[wanted < len(changes)]])
        self.segments = [Segment.of(part, probability, label) for part in np.split(order, starts)]

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of resamples [K], by how often each has each row, [K, N]."""
        rows = positives = np.zeros((len(counts), 1), np.int32)  # before the segment
        pairs, precisions, loss = (np.zeros(len(counts)) for _ in range(3))
        for segment in self.segments:
            some = counts.take(segment.order, axis=1)
            all_rows = _sums(some, rows)
            all_positives = _sums(some.take(segment.positives, axis=1), positives)
            before = all_positives.take(segment.starts_of_positives, axis=1)  # [K, G]
            up_to = all_positives.take(segment.ends_of_positives, axis=1)
            ranked = all_rows.take(segment.ends, axis=1)
            negatives = (
                all_rows.take(segment.starts, axis=1) - before + (ranked - up_to)
            )  # twice: ties are half
            new = (up_to - before).astype(np.float64)
            pairs += np.einsum("kg,kg->k", new, negatives)
            precisions += np.einsum("kg,kg->k", new, up_to / np.maximum(ranked, 1))
            loss += some @ segment.loss
            rows, positives = all_rows[:, -1:], all_positives[:, -1:]
        total = positives[:, 0].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = 1 - pairs / (2 * total * (rows[:, 0] - total))
            average_precision = precisions / total
        return {"auroc": area, "average_precision": average_precision, "log_loss": loss / counts.shape[1]}


class Errors:
    """Mean squared error and R2 of resamples; one whose labels are all equal has no R2: nan.

    Args:
        number, label: [N].
    """

    def __init__(self, number: np.ndarray, label: np.ndarray) -> None:
        number, label = number.astype(np.float64), label.astype(np.float64)
        self.error = np.square(number - label)
        self.label = label - label.mean()  # whose squares are small enough to be exact
        self.rounding = 1e-12 * np.square(self.label).mean() if (label != label[:1]).any() else np.inf

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of resamples [K], by how often each has each row, [K, N]."""
        weights = counts / counts.shape[1]
        error = weights @ self.error
        variance = weights @ np.square(self.label) - np.square(weights @ self.label)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(variance > self.rounding, 1 - error / variance, np.nan)
        return {"mse": error, "r2": r2}


def _sums(counts: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Sums of `before` [K, 1] and the first 0, 1, ... columns, [K, columns + 1]."""
    sums = np.empty((len(counts), counts.shape[1] + 1), np.int32)
    sums[:, :1] = before
    np.cumsum(counts, axis=1, out=sums[:, 1:], dtype=np.int32)
    sums[:, 1:] += before
    return sums
