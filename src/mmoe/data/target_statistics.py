"""Target statistics: numbers that summarise the training labels of each level.

They are those of Micci-Barreca, SIGKDD Explorations 2001.

N rows, P level slots of a row, L codes of all columns, C codes of one column, K numbers that a task makes of
a label (`Task.target_numbers`), S statistics of a level (K for each task, and one for its number of rows).
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mmoe.data.batch import Batch
from mmoe.data.schema import Schema

PRIOR_ROWS = 20.0  # rows with the mean label that are added to each level
SMALLEST_WEIGHT = 1e-30  # a smaller sum of weights is raised to this before the division
SMALLEST_STD = 1e-9  # a smaller standard deviation is a rounding error


def needs_statistics(schema: Schema) -> bool:
    """Whether a column is encoded with target statistics that are not fitted yet."""
    return any(c.encoding and not c.statistics and c.num_codes for c in schema.categorical)


def with_target_statistics(schema: Schema, parts: Iterable[Batch]) -> Schema:
    """The schema with statistics of its columns, from encoded training rows in one or more parts.

    For each task there is the mean label of a level's rows, on the scale of the task's logits: the logit of
    the rate of positive labels (binary) or of each class (multiclass), the mean (regression), or the
    logarithm of the mean (count). Rows with an unknown label do not count, and others count by their weight.
    `PRIOR_ROWS` rows with the mean label and the mean weight are added, so that a rare level does not reveal
    the labels of its rows. The last statistic is the logarithm of 1 + the level's number of rows. Each is
    standardised over the training rows.
    """
    size = schema.num_codes + 1  # the last code is an unseen level, and an unused position
    counts = torch.zeros(size, dtype=torch.float64)
    # For each task, the sums of targets and weights by code [L + 1, K + 1], and of all rows [K + 1].
    widths = [task.target_numbers(torch.zeros(1)).shape[1] + 1 for task in schema.tasks]
    sums = [torch.zeros(size, width, dtype=torch.float64) for width in widths]
    totals = [torch.zeros(width, dtype=torch.float64) for width in widths]
    num_known = [0.0] * len(widths)  # rows with a known label of each task
    for rows in parts:
        codes = rows.levels.long()  # [N, P]
        counts += torch.bincount(codes.flatten(), minlength=size)
        for t, task in enumerate(schema.tasks):
            weight = torch.ones(len(codes), 1, dtype=torch.float64)
            weight *= 1 if rows.known is None else rows.known[:, t : t + 1]
            num_known[t] += weight.sum().item()
            weight *= 1 if rows.weights is None else rows.weights[:, t : t + 1]
            numbers = task.target_numbers(rows.labels[:, t].double())  # [N, K]
            values = torch.cat([numbers * weight, weight], 1)  # [N, K + 1]
            totals[t] += values.sum(0)
            for position in codes.unbind(1):
                sums[t].index_add_(0, position, values)
    statistics = []
    for task, own, total, count in zip(schema.tasks, sums, totals, num_known, strict=True):
        prior = PRIOR_ROWS * total / max(count, 1.0)  # [K + 1]
        means = (own + prior)[:, :-1] / (own + prior)[:, -1:].clamp(min=SMALLEST_WEIGHT)  # [L + 1, K]
        statistics.append(task.target_statistics(means))
    joined = torch.cat([*statistics, (1 + counts).log()[:, None]], 1)  # [L + 1, S]
    columns = []
    for i, column in enumerate(schema.categorical):
        place = slice(*schema.code_offsets[i : i + 2])
        if column.encoding:
            table = _standardised(joined[place], counts[place]).tolist()
            column = replace(column, statistics=tuple(map(tuple, table)))
        columns.append(column)
    return replace(schema, categorical=tuple(columns))


def _standardised(values: Tensor, counts: Tensor) -> Tensor:
    """The z-scores of values [C, S] over rows, where `counts` [C] are rows by code."""
    shares = (counts / counts.sum().clamp(min=1))[:, None]
    mean = (values * shares).sum(0)
    std = ((values - mean).square() * shares).sum(0).sqrt()
    scores = (values - mean) / torch.where(std > SMALLEST_STD, std, 1.0)
    return torch.where(counts[:, None] > 0, scores, 0.0)  # a bucket without rows is like an unseen level
