"""How far a metric would move on other rows: bootstrap intervals (Efron, 1979, percentile method).

K resamples, N rows, G groups of rows with equal predictions.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mmoe.data.schema import Task

CHUNK = 64  # resamples at a time, some 5 KB a row


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
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for i, task in enumerate(tasks):
        metrics = classification if task.is_binary else regression
        parts = []
        for counts in draws(predicted.shape[1], resamples, seed):
            every = [metrics(p[:, i], y[:, i], counts) for p, y in zip(predicted, labels, strict=True)]
            parts.append({name: np.mean([one[name] for one in every], axis=0) for name in every[0]})
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found[task.name] = {
            name: (float(np.nanpercentile(v, 2.5)), float(np.nanpercentile(v, 97.5)))
            for name, v in values.items()
        }
    return found


def draws(num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row was drawn, [up to CHUNK, N], for `resamples` draws of N rows in all."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        drawn = random.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows)


def classification(probability: np.ndarray, label: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Area under the ROC curve, average precision and log loss of resamples, [K] each.

    A resample without rows of both classes has no areas: nan.

    Args:
        probability: [N].
        label: [N], 0 or 1.
        counts: how often each resample has each row, [K, N].
    """
    order = np.argsort(-probability, kind="stable")
    p, y, counts = probability[order], label[order].astype(bool), counts[:, order]
    ends = np.flatnonzero(np.diff(p, append=np.nan))  # the last row of each group of ties
    positives = np.cumsum(counts * y, axis=1)[:, ends].astype(np.float64)  # [K, G]
    negatives = np.cumsum(counts * ~y, axis=1)[:, ends].astype(np.float64)
    new, before = (np.diff(positives, axis=1, prepend=0), np.diff(negatives, axis=1, prepend=0))
    total, others = positives[:, -1], negatives[:, -1]
    below = others[:, None] - negatives + before / 2  # negatives ranked under a group; ties count half
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.nan_to_num(positives / (positives + negatives))
        area = (new * below).sum(1) / (total * others)
        average_precision = (new * precision).sum(1) / total
        loss = -np.where(y, np.log(p), np.log1p(-p)).clip(-100)  # as torch's binary_cross_entropy
    return {"auroc": area, "average_precision": average_precision, "log_loss": counts @ loss / len(y)}


def regression(number: np.ndarray, label: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Mean squared error and R2 of resamples, [K] each; arguments as in `classification`."""
    error = counts @ np.square(number - label) / len(label)
    variance = counts @ np.square(label) / len(label) - np.square(counts @ label / len(label))
    return {"mse": error, "r2": 1 - error / variance}
