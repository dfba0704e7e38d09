"""One shared network with a tower per task (Caruana, 1997; Ma et al., KDD 2018, section 3.1).

B batch, I inputs, H bottom width, T tasks, L logits of all tasks.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_widths
from mmoe.models.layers import SharedInputLinear, deeper_layers, hidden_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.models.towers import TaskLogits


class SharedBottom(nn.Module):
    """A bottom network shared by all tasks, and a tower per task: y_k = h_k(f(x)).

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        bottom_units: widths of the bottom network's layers; the last is H.
        tower_units: widths of a tower's hidden layers, before its outputs.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and no gates.
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        bottom_units: Sequence[int] = (128,),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        (bottom_units,) = check_widths(1, bottom_units=bottom_units)
        (tower_units,) = check_widths(0, tower_units=tower_units)
        task_logits = TaskLogits(num_tasks, task_outputs)
        tower_widths = [*tower_units, task_logits.widest]
        self.bottom = nn.Sequential(
            SharedInputLinear(1, num_inputs, bottom_units[0]),
            *hidden_layers(1, bottom_units, activation, dropout),
        )
        self.towers = nn.Sequential(
            SharedInputLinear(num_tasks, bottom_units[-1], tower_widths[0]),
            *deeper_layers(num_tasks, tower_widths, activation, dropout),
        )
        self.task_logits = task_logits

    def forward(self, x: Tensor | SparseInputs) -> Output:
        h = self.bottom(x).squeeze(1)  # [B, H]
        return Output.without_gates(self.task_logits(self.towers(h)), self.task_logits.num_tasks)
