"""One separate network per task, the baseline for multi-task methods.

B batch, I inputs, T tasks, L logits of all tasks.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_widths
from mmoe.models.layers import SharedInputLinear, deeper_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.models.towers import TaskLogits


class SingleTask(nn.Module):
    """T separate networks of the same architecture, computed side by side.

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        units: widths of each network's hidden layers.
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
        units: Sequence[int] = (64, 8),
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        (units,) = check_widths(1, units=units)
        self.task_logits = TaskLogits(num_tasks, task_outputs)
        self.layers = nn.Sequential(
            SharedInputLinear(num_tasks, num_inputs, units[0]),
            *deeper_layers(num_tasks, [*units, self.task_logits.widest], activation, dropout),
        )

    def forward(self, x: Tensor | SparseInputs) -> Output:
        return Output.without_gates(self.task_logits(self.layers(x)), self.task_logits.num_tasks)
