"""Metrics in bounded memory, for more rows than are kept: areas from histograms of the predictions.

N rows, W classes, Z bins.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmoe.training.grouped_auroc import GroupedAUROC, grouped_auroc

BINS = 2**16  # of equal width in the logit of the probability
MAX_LOGIT = 16.0  # larger logits are in the last bin
MAX_GROUPED_ROWS = 2**20  # `SampledGroupedAUROC` keeps at most so many rows


class BinnedCurve(Metric):
    """Base class: the numbers of positive and of negative labels in each bin of the probability, [Z].

    Rows of one bin are ties, as with torchmetrics' binned curves.
    """

    is_differentiable = False
    full_state_update = False
    positives: Tensor
    negatives: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("positives", "negatives"):
            self.add_state(name, torch.zeros(BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities [N] and labels [N], 0 or 1."""
        bins = bins_of(preds)
        self.positives = self.positives + torch.bincount(bins[target > 0], minlength=BINS)
        self.negatives = self.negatives + torch.bincount(bins[target <= 0], minlength=BINS)


class BinnedAUROC(BinnedCurve):
    """The area under the ROC curve; NaN if all labels are equal. `error_bound` limits its error."""

    def compute(self) -> Tensor:
        return area_of_bins(self.positives, self.negatives)

    def error_bound(self) -> Tensor:
        """The largest possible difference to the exact area: half of the pairs that share a bin."""
        positives, negatives = self.positives.double(), self.negatives.double()
        return (positives * negatives).sum() / (2 * positives.sum() * negatives.sum())


class BinnedAveragePrecision(BinnedCurve):
    """The average precision; NaN if no label is positive."""

    def compute(self) -> Tensor:
        positives, negatives = self.positives.flip(0).double(), self.negatives.flip(0).double()
        found = positives.cumsum(0)
        precision = found / (found + negatives.cumsum(0)).clamp_min(1)
        return (precision * positives).sum() / positives.sum()


class BinnedMacroAUROC(Metric):
    """The mean over classes of the area under the ROC curve of one class against all others.

    Classes that no label has do not count. NaN if all labels are equal.
    """

    is_differentiable = False
    full_state_update = False
    positives: Tensor
    totals: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("positives", "totals"):  # rows of the class, and all rows
            empty = torch.zeros(num_classes, BINS, dtype=torch.int64)
            self.add_state(name, empty, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities [N, W] and classes [N]."""
        bins = bins_of(preds)
        for k in range(preds.shape[1]):
            self.positives[k] += torch.bincount(bins[target == k, k], minlength=BINS)
            self.totals[k] += torch.bincount(bins[:, k], minlength=BINS)

    def compute(self) -> Tensor:
        areas = [area_of_bins(p, total - p) for p, total in zip(self.positives, self.totals, strict=True)]
        occurs = self.positives.sum(-1) > 0
        return torch.stack(areas)[occurs].mean() if occurs.sum() > 1 else areas[0].new_full((), torch.nan)


class RunningR2(Metric):
    """1 - (squared error) / (squared deviation of the labels from their mean); NaN if all labels are equal.

    The sums are of labels less the first one, so that labels far from 0 lose no digits.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor
    first: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Of each rank: the first label; rows, squared errors, shifted labels and their squares.
        self.add_state("first", torch.tensor(torch.nan, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [N] and labels [N]."""
        if not len(target):
            return
        preds, target = preds.double(), target.double()
        self.first = torch.where(self.first.isnan(), target[0], self.first)
        shifted = target - self.first
        added = [torch.ones_like(shifted), (preds - target).square(), shifted, shifted.square()]
        self.sums = self.sums + torch.stack([values.sum() for values in added])

    def compute(self) -> Tensor:
        firsts, sums = self.first.reshape(-1), self.sums.reshape(-1, 4)  # one line for each rank
        used = sums[:, 0] > 0
        firsts, (rows, errors, totals, squares) = firsts[used], sums[used].unbind(1)
        if not len(rows):
            return self.sums.new_full((), torch.nan)
        means = firsts + totals / rows
        within = (squares - totals.square() / rows).sum()
        between = (rows * (means - (rows * means).sum() / rows.sum()).square()).sum()
        deviation = within + between
        return torch.where(deviation > 0, 1 - errors.sum() / deviation, torch.nan)


class SampledGroupedAUROC(GroupedAUROC):
    """`grouped_auroc` of a random share of the groups: all rows of some groups are kept.

    Group numbers must be hashes. A group is kept if the last `level` bits of its number are 0.
    """

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("level", torch.tensor(0), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor, groups: Tensor | None = None) -> None:
        """Add probabilities [N], labels [N] and groups [N]."""
        super().update(preds, target, groups)
        while sum(map(len, self.groups)) > MAX_GROUPED_ROWS:
            self.level = self.level + 1
            self._thin()

    def _is_kept(self, groups: Tensor) -> Tensor:
        return (groups & ((1 << int(self.level)) - 1)) == 0

    def _thin(self) -> None:
        kept = [self._is_kept(groups) for groups in self.groups]
        for name in ("preds", "target", "groups"):
            parts = zip(getattr(self, name), kept, strict=True)
            setattr(self, name, [dim_zero_cat([values[mask] for values, mask in parts])])

    def compute(self) -> Tensor:
        preds, target, groups = map(dim_zero_cat, (self.preds, self.target, self.groups))
        kept = self._is_kept(groups)  # another rank may have a higher level
        return grouped_auroc(preds[kept], target[kept], groups[kept])


def bins_of(probabilities: Tensor) -> Tensor:
    """The bin of each probability, from 0 to Z - 1."""
    logits = probabilities.double().logit().clamp(-MAX_LOGIT, MAX_LOGIT)
    return ((logits + MAX_LOGIT) * (BINS / (2 * MAX_LOGIT))).long().clamp_max(BINS - 1)


def area_of_bins(positives: Tensor, negatives: Tensor) -> Tensor:
    """The area under the ROC curve for the rows in each bin [Z]; ties count one half."""
    positives, negatives = positives.double(), negatives.double()
    below = negatives.cumsum(0) - negatives / 2
    return (positives * below).sum() / (positives.sum() * negatives.sum())
