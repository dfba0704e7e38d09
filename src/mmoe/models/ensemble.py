"""Several networks of one kind, trained side by side and averaged.

M members, B batch, I inputs, T tasks.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mmoe.errors import ArgumentError, check_integers
from mmoe.models.network import Output
from mmoe.models.replicas import Replicas


class Ensemble(nn.Module):
    """Average M networks; in training each member has its own loss.

    Args:
        num_inputs, num_tasks: I and T.
        member: builds one member from `num_inputs` and `num_tasks`.
        size: M.
        mean: `probability` to average probabilities, or `logit` to average logits, as regressions need.

    Raises:
        ArgumentError: an argument is outside its range, or the members have a `penalty`.

    Shape:
        x: [B, I]; output: the averaged logits [B, T]; in training, all members' logits [M, B, T]. There are
        no gates, because expert e of one member has nothing to do with expert e of another.
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
            raise ArgumentError(f"mean={mean}: must be probability or logit")
        self.averages_probabilities = mean == "probability"
        try:
            members = [member(num_inputs=num_inputs, num_tasks=num_tasks) for _ in range(size)]
        except TypeError as error:  # the member's class takes other arguments
            raise ArgumentError(f"member: {error}") from error
        if hasattr(members[0], "penalty"):
            raise ArgumentError(f"member={type(members[0]).__name__}: must have no penalty")
        self.members = Replicas(members)

    def forward(self, x: Tensor) -> Output:
        logits = self.members(x).logits  # [M, B, T]
        gates = logits.new_zeros(*logits.shape[1:], 0)
        return Output(logits if self.training else self.average(logits), gates)

    def average(self, logits: Tensor) -> Tensor:
        """Average the members' logits [M, B, T] to logits [B, T]."""
        if self.averages_probabilities:  # the logit of the mean, without overflow
            return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)
        return logits.mean(0)
