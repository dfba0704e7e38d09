"""The output of every network.

B batch, T tasks, E experts.
"""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """Logits and gate weights of a batch.

    Shape:
        logits: [B, T]; the loss and the metrics apply the sigmoid.
        gates: [B, T, E]; they sum to 1 over E. A method without gates has E = 0.
    """

    logits: Tensor
    gates: Tensor

    @classmethod
    def without_gates(cls, logits: Tensor) -> "Output":
        return cls(logits, logits.new_zeros(*logits.shape, 0))
