"""What every network returns.

B batch, T tasks, E experts.
"""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """Logits and gate weights of a batch.

    Shape:
        logits: [B, T]; the sigmoid belongs to the loss and the metrics.
        gates: [B, T, E]; weights of the experts, which sum to 1 over E. A method without gates has E = 0.
    """

    logits: Tensor
    gates: Tensor

    @classmethod
    def without_gates(cls, logits: Tensor) -> "Output":
        """The output of a method that has no experts."""
        return cls(logits, logits.new_zeros(*logits.shape, 0))
