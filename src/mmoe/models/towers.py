"""Task towers, and the logits that they end in.

B batch, T tasks, W outputs of the widest task, L logits of all tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_widths
from mmoe.errors import ArgumentError
from mmoe.models.layers import StackedLinear, deeper_layers


def task_towers(
    num_tasks: int,
    num_inputs: int,
    units: Sequence[int],
    task_logits: "TaskLogits",
    activation: str,
    dropout: float,
) -> nn.Sequential:
    """Build a tower per task: hidden layers of the widths `units`, then the outputs for `task_logits`.

    Shape:
        input: [B, T, num_inputs]; output: [B, T, W], see `TaskLogits`.
    """
    widths = [*units, task_logits.widest]
    return nn.Sequential(
        StackedLinear(num_tasks, num_inputs, widths[0]),
        *deeper_layers(num_tasks, widths, activation, dropout),
    )


class TaskLogits(nn.Module):
    """Turn the outputs of a stacked last layer into logits: those of the first task, then the second, ...

    The layer has W outputs for every task, as many as the widest task needs. Surplus ones are dropped.

    Args:
        num_tasks: T.
        task_outputs: the number of logits of each task; None: one each.

    Attributes:
        outputs: the number of logits of each task.
        widest: W.

    Raises:
        ArgumentError: `task_outputs` is not a list of T integers of at least 1.

    Shape:
        x: [B, T, W]; output: [B, L], where L is the sum of `task_outputs`.
    """

    def __init__(self, num_tasks: int, task_outputs: Sequence[int] | None = None) -> None:
        super().__init__()
        (num_tasks,) = check_integers(1, num_tasks=num_tasks)
        (outputs,) = check_widths(1, task_outputs=[1] * num_tasks if task_outputs is None else task_outputs)
        if len(outputs) != num_tasks:
            raise ArgumentError(f"task_outputs={outputs}: must have {num_tasks} numbers, one for each task")
        self.num_tasks, self.outputs, self.widest = num_tasks, outputs, max(outputs)
        kept = [t * self.widest + i for t, width in enumerate(outputs) for i in range(width)]
        self.drops = len(kept) < num_tasks * self.widest
        self.kept = nn.Buffer(torch.tensor(kept), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)  # [B, T*W]
        return logits.index_select(1, self.kept) if self.drops else logits
