"""Several networks of one kind that answer as one.

M members, B batch, I inputs, T tasks.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mmoe.arguments import check_integers
from mmoe.errors import UserError
from mmoe.models.output import Output
from mmoe.models.replicas import Replicas


class Ensemble(nn.Module):
    """Members that are trained side by side, each by its own loss, and whose mean is the prediction.

    Args:
        num_inputs: I.
        num_tasks: T.
        member: makes one of them, from `num_inputs` and `num_tasks`.
        size: M.
        mean: of what: `probability`, or `logit`, which is right for regressions.

    Raises:
        UserError: an argument is outside its range, or the members have a `penalty`.

    Shape:
        x: [B, I]; output: logits [B, T] of the mean, in training those of every member, [M, B, T]. Gates are
        left out, for an expert of one member is not that of another.
    """

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        member: Callable[..., nn.Module],
        size: int = 8,
        mean: str = "probability",
    ) -> None:
        super().__init__()
        (size,) = check_integers(1, size=size)
        if mean not in ("probability", "logit"):
            raise UserError(f"mean={mean}: must be probability or logit")
        self.of_probabilities = mean == "probability"
        try:
            members = [member(num_inputs=num_inputs, num_tasks=num_tasks) for _ in range(size)]
        except TypeError as error:  # an argument too many or too few
            raise UserError(f"member: {error}") from error
        if hasattr(members[0], "penalty"):
            raise UserError(f"member={type(members[0]).__name__}: must have no penalty")
        self.members = Replicas(members)

    def forward(self, x: Tensor) -> Output:
        """Logits of a batch."""
        logits = self.members(x).logits  # [M, B, T]
        gates = logits.new_zeros(*logits.shape[1:], 0)
        return Output(logits if self.training else self.mean(logits), gates)

    def mean(self, logits: Tensor) -> Tensor:
        """The members' common logits [B, T], of their own [M, B, T]."""
        if self.of_probabilities:  # the logit of their mean, which does not overflow
            return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)
        return logits.mean(0)
