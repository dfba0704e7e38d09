"""One separate network per task, the baseline for multi-task methods.

B batch, I inputs, T tasks.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmoe.errors import check_integers, check_widths
from mmoe.models.layers import SharedInputLinear, deeper_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs


class SingleTask(nn.Module):
    """T separate networks of the same architecture, computed side by side.

    Args:
        num_inputs, num_tasks: I and T.
        units: widths of each network's hidden layers.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and no gates.
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        units: Sequence[int] = (64, 8),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        (units,) = check_widths(1, units=units)
        self.layers = nn.Sequential(
            SharedInputLinear(num_tasks, num_inputs, units[0]),
            *deeper_layers(num_tasks, [*units, 1], activation, dropout),
        )

    def forward(self, x: Tensor | SparseInputs) -> Output:
        return Output.without_gates(self.layers(x).squeeze(-1))  # [B, T]
