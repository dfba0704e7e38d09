"""The areas under the ROC and the precision-recall curve: AUROC and average precision.

Both follow from the numbers of positive and of negative labels at each score. The exact metrics keep all rows
and sort them once. The binned ones keep counts by bins of the score, so their memory does not grow.

N rows, W classes, S distinct scores in ascending order, Z bins.
"""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmoe.metrics.kept_rows import KeptRows

BINS = 2**16  # of equal width in the logit of the probability
MAX_LOGIT = 16.0  # logits beyond this, or below its negative, are in the last or the first bin


def areas_of_counts(positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
    """The AUROC and the average precision from the labels at each score.

    Rows with equal scores are ties. The AUROC is the share of pairs of a positive and a negative row in which
    the positive one has the higher score; ties count one half. It is NaN if all labels are equal. The average
    precision is the mean precision at the scores of the positive rows; NaN if there are none.

    Shape:
        positives, negatives: [S]; outputs: scalars in float64.
    """
    positives, negatives = positives.double(), negatives.double()
    negatives_up_to = negatives.cumsum(0)
    num_positives, num_negatives = positives.sum(), negatives.sum()
    auroc = (positives * (negatives_up_to - negatives / 2)).sum() / (num_positives * num_negatives)
    found = num_positives - positives.cumsum(0) + positives  # positives with at least this score
    precision = found / (found + num_negatives - negatives_up_to + negatives).clamp_min(1)
    return {"auroc": auroc, "average_precision": (precision * positives).sum() / num_positives}


def counts_by_score(scores: Tensor, is_positive: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of positive and of negative rows at each distinct score, [S] each.

    Shape:
        scores: [N]; is_positive: [N], True or 1 for positive rows.
    """
    # numpy sorts several times as fast as torch on a CPU.
    order = torch.from_numpy(np.argsort(scores.numpy())) if scores.device.type == "cpu" else scores.argsort()
    scores = scores[order]
    found = is_positive[order].long().cumsum(0)  # positives with at most this score
    is_last = torch.ones_like(scores, dtype=torch.bool)  # whether the next score is another one
    is_last[:-1] = scores[1:] != scores[:-1]
    ends = is_last.nonzero()[:, 0]
    positives = found[ends].diff(prepend=found.new_zeros(1))
    return positives, ends.diff(prepend=ends.new_full((1,), -1)) - positives


class Areas(KeptRows):
    """The exact AUROC and average precision of probabilities [N] and labels [N]; see `areas_of_counts`."""

    def compute(self) -> dict[str, Tensor]:
        return areas_of_counts(*counts_by_score(dim_zero_cat(self.preds), dim_zero_cat(self.target) > 0))


class MacroAUROC(KeptRows):
    """The mean over classes of the AUROC of one class against all others, from probabilities [N, W].

    Classes that no label has do not count. NaN if all labels are equal.
    """

    def compute(self) -> Tensor:
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        classes = torch.unique(target)
        if len(classes) < 2:
            return preds.new_full((), torch.nan)
        counts = [counts_by_score(preds[:, k], target == k) for k in classes.tolist()]
        return torch.stack([areas_of_counts(*own)["auroc"] for own in counts]).mean()


class BinnedAreas(Metric):
    """The AUROC and the average precision, in which the rows of one bin are ties."""

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
        positives = torch.bincount(bins[target > 0], minlength=BINS)
        self.negatives = self.negatives + torch.bincount(bins, minlength=BINS) - positives
        self.positives = self.positives + positives

    def compute(self) -> dict[str, Tensor]:
        return areas_of_counts(self.positives, self.negatives)


class BinnedMacroAUROC(Metric):
    """The mean over classes of the AUROC of one class against all others, from binned probabilities.

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
        areas = [
            areas_of_counts(p, total - p)["auroc"]
            for p, total in zip(self.positives, self.totals, strict=True)
        ]
        occurs = self.positives.sum(-1) > 0
        return torch.stack(areas)[occurs].mean() if occurs.sum() > 1 else areas[0].new_full((), torch.nan)


def bins_of(probabilities: Tensor) -> Tensor:
    """The bin of each probability, from 0 to Z - 1."""
    logits = probabilities.double().logit().clamp(-MAX_LOGIT, MAX_LOGIT)
    return ((logits + MAX_LOGIT) * (BINS / (2 * MAX_LOGIT))).long().clamp_max(BINS - 1)
