"""The AUROC within groups of rows, as recommenders report it.

N rows, G groups.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def grouped_auroc(probability: Tensor, label: Tensor, group: Tensor) -> Tensor:
    """The mean AUROC of groups, weighted by their rows (Zhou et al., KDD 2018, section 5.3).

    Groups with labels of one class have no AUROC and do not count. Equal probabilities count one half. The
    mean is NaN if no group has labels of both classes.

    Shape:
        probability, label (0 or 1), group (any numbers): [N]; output: a scalar in float64.
    """
    _, group, rows = torch.unique(group, return_inverse=True, return_counts=True)  # [N], [G]
    order = torch.argsort(probability, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then by probability
    probability, group, label = probability[order], group[order], label[order].double()
    is_new = torch.ones_like(group, dtype=torch.bool)
    is_new[1:] = (probability[1:] != probability[:-1]) | (group[1:] != group[:-1])
    _, tie, counts = torch.unique_consecutive(is_new.cumsum(0), return_inverse=True, return_counts=True)
    places = counts.cumsum(0) - (counts - 1) / 2  # from 1; tied rows have their mean place
    ranks = places.double()[tie] - (rows.cumsum(0) - rows)[group]  # [N], from 1 in each group
    zeros = label.new_zeros(len(rows))
    positives = zeros.index_add(0, group, label)  # [G]
    pairs = positives * (rows - positives)
    area = (zeros.index_add(0, group, ranks * label) - positives * (positives + 1) / 2) / pairs
    has_both = pairs > 0
    mean: Tensor = (area * rows)[has_both].sum() / rows[has_both].sum()
    return mean


class GroupedAUROC(Metric):
    """`grouped_auroc` over the rows of all processes; NaN if the rows have no groups."""

    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]
    groups: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("preds", "target", "groups"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, groups: Tensor | None = None) -> None:
        """Add probabilities [N], labels [N] and groups [N]."""
        count = 0 if groups is None else len(target)
        self.preds.append(preds[:count])
        self.target.append(target[:count])
        self.groups.append(target.new_empty(0, dtype=torch.int64) if groups is None else groups)

    def compute(self) -> Tensor:
        return grouped_auroc(*map(dim_zero_cat, (self.preds, self.target, self.groups)))
