"""Find columns that give a label away.

A network that sees such a column learns the column instead of the task, and is useless on new rows, where the
column is not known yet. A column is a suspect if it repeats a label, marks a part of its positive rows or
predicts it nearly without error, or if a sum, product or ratio with other columns gives the label.

N rows, P columns of numbers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from mmoe.data.column_values import ColumnValues, sample_rows
from mmoe.data.task_guess import TaskGuess

MAX_ROWS = 200_000  # rows that are looked at
MAX_FORMULA_ROWS, MAX_FORMULA_COLUMNS = 2000, 60
MIN_AUROC, MIN_CORRELATION = 0.99, 0.9999
MIN_R2 = 0.999999  # of a weighted sum of columns
MAX_CLASSES = 10  # this many of the most frequent classes of a multiclass label are looked at
MIN_POSITIVES = 5  # in each half of the rows
# A part: the rows in which a column does not have its most frequent value; see `_unusual_rows_agree`.
MIN_PART_ROWS = 10
MIN_PART_PRECISION = 0.99
LARGEST_LOG_CHANCE = -6.0  # log10 of the largest probability that all rows of a part are positive by chance
# If a part holds all positive rows, its column is a suspect if the part has at most MAX_WHOLE_SHARE of all
# rows, and at least MIN_WHOLE_PRECISION of its rows are positive.
MAX_WHOLE_SHARE, MIN_WHOLE_PRECISION = 0.1, 0.2


def find_suspects(tasks: Sequence[TaskGuess], columns: Sequence[ColumnValues]) -> dict[str, str]:
    """The reason for each suspect, by the name of the column."""
    found: dict[str, str] = {}
    for task in tasks:
        others = [column for column in columns if column.name not in found]
        rows = sample_rows(task.values.num_rows, MAX_ROWS, task.values.codes >= 0)
        label = task.values.take(rows)
        sampled = [column.take(rows) for column in others]
        for column in sampled:
            if reason := _repeats(column, label) or _predicts(column, label, task):
                found[column.name] = reason
        if task.kind in ("regression", "count"):
            rest = [column for column in sampled if column.is_number and column.name not in found]
            found |= _formula(rest, label)
    return found


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve of scores [N] for labels [N]."""
    count = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _repeats(column: ColumnValues, label: ColumnValues) -> str:
    """Say if each value of the column belongs to one value of the label, and the other way round."""
    known = column.codes >= 0
    if not known.all():
        return ""
    pairs = np.unique(column.codes.astype(np.int64) * len(label.distinct) + label.codes)
    num_levels, num_labels = len(np.unique(column.codes)), len(np.unique(label.codes))
    if not len(pairs) == num_levels == num_labels or num_labels > len(label.codes) / 2:
        return ""
    same = [
        column.texts[pair // len(label.distinct)] == label.texts[pair % len(label.distinct)] for pair in pairs
    ]
    return f"equals {label.name}" if all(same) else f"has one level for each value of {label.name}"


def _predicts(column: ColumnValues, label: ColumnValues, task: TaskGuess) -> str:
    """Say if the column alone predicts the label nearly without error."""
    counts = np.bincount(label.codes, minlength=len(label.distinct))
    if task.kind in ("regression", "count"):
        if reason := _correlates(column, label):
            return reason
        usual = int(counts.argmax())  # such as 0 for an amount
        positives = {f"other than {label.texts[usual]}": label.codes != usual}
    elif task.kind == "binary":
        positives = {"positive": label.codes == label.texts.index(str(task.options["positive"][0]))}
    else:
        common = np.argsort(-counts)[:MAX_CLASSES]
        positives = {label.texts[code]: label.codes == code for code in common}
    found = (_separates(column, rows, label.name, state) for state, rows in positives.items())
    return next(filter(None, found), "")


def _separates(column: ColumnValues, positive: np.ndarray, name: str, state: str) -> str:
    """Say if the column alone separates the positive rows [N], whose label is `state`, from the others."""
    if not MIN_POSITIVES * 2 <= positive.sum() <= len(positive) - MIN_POSITIVES * 2:
        return ""
    what = name if state == "positive" else f"whether {name} is {state}"
    if column.is_number:
        numbers = column.numbers
        scores = np.where(np.isnan(numbers), np.nanmin(numbers, initial=0) - 1, numbers)
        area = auroc(scores, positive)
        if max(area, 1 - area) > MIN_AUROC:
            return f"alone predicts {what} with an AUROC of {max(area, 1 - area):.3f}"
    area = _area_by_level(column, positive)
    if area > MIN_AUROC:
        return f"alone predicts {what} with an AUROC of {area:.3f}"
    return _unusual_rows_agree(column, positive, f"{name} is {state}")


def _area_by_level(column: ColumnValues, positive: np.ndarray) -> float:
    """The AUROC on one half of the rows, whose scores are the positive rates of levels in the other half."""
    order = np.random.default_rng(0).permutation(len(positive))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    if min(positive[first].sum(), positive[second].sum()) < MIN_POSITIVES:
        return 0.5
    codes, size = column.codes + 1, len(column.distinct) + 1
    rows = np.bincount(codes[first], minlength=size)
    rates = np.bincount(codes[first], weights=positive[first], minlength=size) + positive[first].mean()
    return auroc((rates / (rows + 1))[codes[second]], positive[second])


def _unusual_rows_agree(column: ColumnValues, positive: np.ndarray, claim: str) -> str:
    """Say if nearly all rows with an unusual value are positive, or if all positive rows have one.

    For example, a kind of failure is a part of "any failure".
    """
    if not (column.is_number or len(column.distinct) == 2):
        return ""
    counts = np.bincount(column.codes + 1, minlength=len(column.distinct) + 1)
    usual = int(counts.argmax()) - 1
    active = column.codes != usual
    count, base = int(active.sum()), float(positive.mean())
    if usual < 0 or not MIN_PART_ROWS <= count <= len(positive) / 2 or base > 0.5:
        return ""
    precision = float(positive[active].mean())
    is_chance = count * np.log10(base) > LARGEST_LOG_CHANCE
    if precision >= MIN_PART_PRECISION and not is_chance:
        share = "all" if precision == 1 else "nearly all"
        return f"{claim} in {share} {count:,} rows where this is not {column.texts[usual]}"
    is_rare = count <= MAX_WHOLE_SHARE * len(positive) and precision >= MIN_WHOLE_PRECISION
    if is_rare and not positive[~active].any():
        return f"{claim} in no row where this is {column.texts[usual]}"
    return ""


def _correlates(column: ColumnValues, label: ColumnValues) -> str:
    """Say if the linear or the rank correlation of a column of numbers with the label is nearly 1 or -1."""
    if not column.is_number or len(column.distinct) < 3:
        return ""
    known = ~np.isnan(column.numbers)
    x, y = column.numbers[known], label.numbers[known]
    if len(np.unique(x)) < 3 or len(np.unique(y)) < 3 or len(x) < 20 or len(x) < len(known) / 2:
        return ""
    for one, other in ((x, y), (rankdata(x), rankdata(y))):
        correlation = float(np.corrcoef(one, other)[0, 1])
        if abs(correlation) > MIN_CORRELATION:
            return f"has a correlation of {correlation:.5f} with {label.name}"
    return ""


def _formula(columns: Sequence[ColumnValues], label: ColumnValues) -> Mapping[str, str]:
    """The reason for each column, if the label is a weighted sum, a product or a ratio of columns."""
    rows = sample_rows(len(label.codes), MAX_FORMULA_ROWS)
    y = label.numbers[rows]
    x = (
        np.stack([column.numbers[rows] for column in columns], 1) if columns else np.empty((len(y), 0))
    )  # [N, P]
    complete = ~np.isnan(x).any(1)
    x, y = x[complete], y[complete]
    varies = x.std(0) > 0 if len(x) else np.zeros(x.shape[1], bool)
    names = np.array([column.name for column in columns], dtype=object)[varies][:MAX_FORMULA_COLUMNS]
    x = x[:, varies][:, :MAX_FORMULA_COLUMNS]
    if x.shape[1] < 2 or len(y) < 5 * x.shape[1] or len(np.unique(y)) < 3:
        return {}
    scaled, target = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    weights = np.linalg.lstsq(scaled, target, rcond=None)[0]
    if ((scaled @ weights - target) ** 2).mean() < 1 - MIN_R2:
        parts = names[np.abs(weights) > 0.01]
        return dict.fromkeys(parts, f"{label.name} is a weighted sum of {', '.join(parts)}")
    for operation, other in (("x", x), ("/", np.divide(1, x, out=np.full_like(x, np.nan), where=x != 0))):
        for i in range(x.shape[1]):
            product = x[:, i : i + 1] * other  # [N, P]
            with np.errstate(invalid="ignore", divide="ignore"):
                centred = product - product.mean(0)
                correlations = (centred * target[:, None]).mean(0) / centred.std(0)
            hits = np.flatnonzero(np.abs(np.nan_to_num(correlations)) > MIN_CORRELATION)
            if len(hits):
                pair = [names[i], names[hits[0]]]
                return dict.fromkeys(pair, f"{label.name} is {pair[0]} {operation} {pair[1]}")
    return {}
