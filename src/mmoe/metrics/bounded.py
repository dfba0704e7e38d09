"""R2 and the AUROC within groups, in memory that does not grow with the rows.

N rows.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmoe.metrics.grouped_auroc import GroupedAUROC, grouped_auroc

MAX_GROUPED_ROWS = 2**20  # `SampledGroupedAUROC` keeps at most this many rows


class RunningR2(Metric):
    """1 - (squared error) / (squared deviation of the labels from their mean); NaN if all labels are equal.

    The sums are of labels minus the first label, so that labels far from 0 lose no digits.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor
    first: Tensor

    def __init__(self) -> None:
        super().__init__()
        # For each process: the first label; the number of rows, and the sums of squared errors, of shifted
        # labels and of their squares.
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
        firsts, sums = self.first.reshape(-1), self.sums.reshape(-1, 4)  # a row for each process
        used = sums[:, 0] > 0
        firsts, (rows, errors, totals, squares) = firsts[used], sums[used].unbind(1)
        if not len(rows):
            return self.sums.new_full((), torch.nan)
        means = firsts - firsts[0] + totals / rows  # all are exactly 0 if all labels are equal
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
        kept = self._is_kept(groups)  # another process may have a higher level
        return grouped_auroc(preds[kept], target[kept], groups[kept])
