"""A metric that keeps all rows until it is computed.

N rows.
"""

from torch import Tensor
from torchmetrics import Metric


class KeptRows(Metric):
    """Base class: the predictions and the labels of all rows, in one part for each update."""

    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [N, ...] and labels [N]."""
        self.preds.append(preds)
        self.target.append(target)
