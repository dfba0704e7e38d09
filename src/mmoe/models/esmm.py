"""ESMM (Ma et al., SIGIR 2018): conversion trained over all rows as a product of probabilities.

B batch, I inputs, T tasks, A the tasks again, as ancestors in the funnel, F tasks that depend on another one,
L logits of all tasks.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmoe.checks.arguments import check_integers
from mmoe.errors import ArgumentError, UserError
from mmoe.models.ensemble import Ensemble
from mmoe.models.shared_bottom import SharedBottom
from mmoe.tasks import Binary, Task
from mmoe.tasks.task import WHERE_LEVELS

SMALLEST = 1e-30  # the least -log of a joint probability, which keeps the joint logit at or below 69


class ESMM(SharedBottom):
    """A shared bottom whose loss multiplies the probabilities of a funnel (equations 1 and 3 of the paper).

    The logits, and so predictions and metrics, are conditional as for every method. For the tasks `click` and
    `conversion`, whose label is known only where `click` is positive, they give p(click) and
    p(conversion | click). The loss of `conversion` is that of the product p(click) p(conversion | click) in
    all rows, where a row without a click is negative. So `conversion` learns from all rows, not only from
    clicked ones. Its factor p(conversion | click) has no loss of its own.

    The paper shares embeddings of the columns between the two networks. Here they share a bottom network.

    Args:
        parents: for each task the number of the task that its label depends on, or -1; None: each task
            depends on the one before it. A task with a parent, and this parent, must have one logit each.
        Other arguments: see `SharedBottom`.

    Raises:
        ArgumentError: an argument is outside its range, or the parents form a cycle.

    Shape:
        x: [B, I]; output: logits [B, L] and no gates.
    """

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        bottom_units: Sequence[int] = (128,),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
        parents: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_inputs, num_tasks, bottom_units, tower_units, activation, dropout, task_outputs)
        num_tasks = self.task_logits.num_tasks
        parents = (
            list(range(-1, num_tasks - 1))
            if parents is None
            else check_integers(-1, **{f"parents[{i}]": parent for i, parent in enumerate(parents)})
        )
        if len(parents) != num_tasks or max(parents) >= num_tasks:
            raise ArgumentError(f"parents={parents}: must have {num_tasks} integers, numbers of tasks or -1")
        outputs = self.task_logits.outputs
        if any(p >= 0 and max(outputs[task], outputs[p]) > 1 for task, p in enumerate(parents)):
            rule = f"must have one logit each, has task_outputs={outputs}"
            raise ArgumentError(f"parents={parents}: a task with a parent, and this parent, {rule}")
        ancestors = torch.zeros(num_tasks, num_tasks)  # [T, A], 1 where A is an ancestor of T
        for task in range(num_tasks):
            ancestor = parents[task]
            while ancestor >= 0 and not ancestors[task, ancestor]:
                ancestors[task, ancestor] = 1
                ancestor = parents[ancestor]
        if ancestors.diagonal().any():
            raise ArgumentError(f"parents={parents}: must not form a cycle")
        dependent = [task for task, parent in enumerate(parents) if parent >= 0]
        first = [*accumulate(outputs, initial=0)][:-1]
        self.ancestors = nn.Buffer(ancestors, persistent=False)
        self.first = nn.Buffer(torch.tensor(first), persistent=False)  # [T], each task's first logit
        self.dependent = nn.Buffer(torch.tensor(dependent, dtype=torch.long), persistent=False)  # [F]

    @staticmethod
    def task_arguments(tasks: Sequence[Task]) -> Mapping[str, Any]:
        """The arguments that follow from the tasks: a binary task depends on the one that its `where` names.

        Raises:
            UserError: no binary task depends on another one, or a task's `where` names other levels than the
                positive ones of its parent.
        """
        parents = [-1] * len(tasks)
        for i, task in enumerate(tasks):
            for j, other in enumerate(tasks):
                if not isinstance(task, Binary) or not isinstance(other, Binary) or i == j:
                    continue
                if task.where == other.column:
                    _check_same_rows(task, other)
                    parents[i] = j
        if max(parents) < 0:
            rule = "needs a binary task whose `where` names another, such as {column: bought, where: clicked}"
            raise UserError(f"model=esmm: {rule}")
        return {"parents": parents}

    def joint_logits(self, logits: Tensor) -> Tensor:
        """The logits [..., L] of the joint probabilities, from the conditional ones.

        For the probabilities p_a of a task and its ancestors, u = -log(prod p_a) = sum softplus(-logit_a),
        and the joint logit is -log(exp(u) - 1) = -u - log(1 - exp(-u)).
        """
        wide = logits.to(
            torch.promote_types(logits.dtype, torch.float32)
        )  # float16 would round SMALLEST to 0
        negative = softplus(-wide.index_select(-1, self.first))  # [..., T]
        u = negative + negative @ self.ancestors.T.to(negative.dtype)
        u = u.index_select(-1, self.dependent).clamp(min=SMALLEST)  # [..., F]
        joint = -u - torch.log(-torch.expm1(-u))
        place = self.first.index_select(0, self.dependent)
        return logits.index_copy(-1, place, joint.to(logits.dtype))

    def joint_labels(self, labels: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The labels [..., T], and which are known.

        If a task's label is known to be 0, those of all tasks that depend on it become 0 and known.
        """
        if known is None:
            return labels, None
        is_zero = (known & (labels == 0)).to(labels.dtype)
        ended = (is_zero @ self.ancestors.T.to(labels.dtype)) > 0  # [..., T]
        return labels.masked_fill(ended, 0.0), known | ended


def funnel_of(model: nn.Module) -> ESMM | None:
    """Return the model, or the stacked members of an ensemble, if it is an `ESMM`; else None."""
    one: Any = model.members.stacked if isinstance(model, Ensemble) else model
    return one if isinstance(one, ESMM) else None


def _check_same_rows(task: Task, parent: Binary) -> None:
    """Raise UserError unless the levels of `where` are the positive levels of the parent.

    A `where` without levels stands for `WHERE_LEVELS`. The positive levels of the parent must be among
    them.
    """
    positive, levels = set(parent.positive), set(task.where_levels)
    same = (
        {level.lower() for level in positive} <= levels if levels == set(WHERE_LEVELS) else positive == levels
    )
    if not same:
        rule = f"must name the positive levels of {parent.name}, {sorted(positive)}, for model=esmm"
        raise UserError(f"data.tasks.{task.name}.where={task.where}: {rule}; it names {sorted(levels)}")
