"""Several networks of one kind, trained side by side and averaged.

M members, B batch, I inputs, T tasks, E experts of a member, L logits of all tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmoe.checks.arguments import check_integers
from mmoe.errors import ArgumentError
from mmoe.models.mean_prediction import Average, MeanPrediction
from mmoe.models.network import Output, OutputOfMembers
from mmoe.models.replicas import Replicas
from mmoe.models.towers import TaskLogits
from mmoe.tasks import Task


class Ensemble(nn.Module):
    """Average M networks; in training each member has its own loss.

    Args:
        num_inputs, num_tasks: I and T.
        member: builds one member from `num_inputs`, `num_tasks` and, if it is given, `task_outputs`.
        size: M.
        mean: `probability` to average predictions, or `logit` to average logits.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        averages: for each task, the function that averages predictions; see `MeanPrediction`.
        member_arguments: further arguments of every member.

    Raises:
        ArgumentError: an argument is outside its range, or the members have a penalty or are ensembles.

    Shape:
        x: [B, I]; output: the averaged logits [B, L]; in training also those of all members [M, B, L], or, if
        the members have expert heads, [M * (1 + E), B, L]. There are no gates, because expert e of one member
        has nothing to do with expert e of another.
    """

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        member: Callable[..., nn.Module],
        size: int = 8,
        mean: str = "probability",
        task_outputs: Sequence[int] | None = None,
        averages: Sequence[Average] | None = None,
        member_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.size, num_inputs = check_integers(1, size=size, num_inputs=num_inputs)
        if mean not in ("probability", "logit"):
            raise ArgumentError(f"mean={mean}: must be probability or logit")
        task_logits = TaskLogits(num_tasks, task_outputs)  # checks both
        self.num_tasks = task_logits.num_tasks
        self.mean = MeanPrediction(task_logits.outputs, averages) if mean == "probability" else None
        options: dict[str, Any] = {} if task_outputs is None else {"task_outputs": task_outputs}
        options |= member_arguments or {}
        try:
            members = [
                member(num_inputs=num_inputs, num_tasks=num_tasks, **options) for _ in range(self.size)
            ]
        except ArgumentError as error:
            raise ArgumentError(f"member.{error}") from error
        except TypeError as error:  # the member's class takes other arguments
            raise ArgumentError(f"member: {error}") from error
        name = type(members[0]).__name__
        if not isinstance(members[0], nn.Module) or isinstance(members[0], Ensemble):
            raise ArgumentError(f"member={name}: must build a module that is not an ensemble")
        if getattr(members[0], "has_penalty", False):
            raise ArgumentError(f"member={name}: must have no penalty; set its factor to 0")
        self.takes_sparse_inputs = getattr(members[0], "takes_sparse_inputs", False)
        self.members = Replicas(members)

    @staticmethod
    def task_arguments(tasks: Sequence[Task]) -> Mapping[str, Any]:
        """The arguments that follow from the tasks."""
        return {"averages": [task.average for task in tasks]}

    def forward(self, x: Tensor) -> Output | OutputOfMembers:
        output = self.members(x)
        logits = output.logits  # [M, B, L]
        mean = self.mean(logits) if self.mean else logits.mean(0)  # [B, L]
        gates = logits.new_zeros(logits.shape[1], self.num_tasks, 0)
        if not self.training:
            return Output(mean, gates)
        if isinstance(output, OutputOfMembers):
            logits = output.member_logits.flatten(0, 1)  # [M * (1 + E), B, L]
        return OutputOfMembers(mean, gates, logits)
