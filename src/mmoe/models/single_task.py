"""A network of its own for each task: what multi-task methods are measured against.

B batch, I inputs, T tasks, U width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmoe.arguments import check_integers, check_widths
from mmoe.models.layers import FanOut, StackedLinear, hidden_layers
from mmoe.models.output import Output
from mmoe.models.sparse import SparseInputs


class SingleTask(nn.Module):
    """T separate networks of one shape, side by side; nothing is shared.

    Args:
        num_inputs: I.
        num_tasks: T.
        units: widths of each network's hidden layers.
        activation: of hidden layers; a key of `layers.ACTIVATIONS`.
        dropout: share of hidden units set to 0 in training.

    Raises:
        UserError: an argument is outside its range.

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
            FanOut(num_tasks, num_inputs, units[0]),
            *hidden_layers(num_tasks, units, activation, dropout),
            StackedLinear(num_tasks, units[-1], 1),
        )

    def forward(self, x: Tensor | SparseInputs) -> Output:
        """Logits of a batch."""
        return Output.without_gates(self.layers(x).squeeze(-1))
