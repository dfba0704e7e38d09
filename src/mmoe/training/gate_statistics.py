"""Statistics of gate weights, tasks with constant predictions, and dead ReLU units.

B batch, N rows, T tasks, U the same tasks again, L logits of all tasks, E experts. With replicas, every shape
starts with R.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmoe.models.replicas import Replicas
from mmoe.tasks import Task, logit_columns

POLARISED = 0.9  # a row is polarised if its largest gate weight is above this
COLLAPSED = 0.9  # a gate has collapsed if its mean weight for one expert is above this


class GateSummary(NamedTuple):
    """Means of gate statistics over rows.

    Shape:
        weights: [T, E]. entropy: [T], in nats. polarised: [T], the share of polarised rows. similarity:
        [T, T], the cosine similarity of two tasks' gate weights.
    """

    weights: Tensor
    entropy: Tensor
    polarised: Tensor
    similarity: Tensor

    @property
    def effective_experts(self) -> Tensor:
        """exp(entropy), [T]: E if all experts have equal weights, 1 if one expert has all the weight."""
        return self.entropy.exp()

    @property
    def unused_experts(self) -> Tensor:
        """[E], whether every task gives the expert a mean weight below 0.1 / E."""
        return (self.weights < 0.1 / self.weights.shape[-1]).all(-2)

    def by_name(self, tasks: Sequence[str]) -> dict[str, Tensor]:
        """All statistics by the names under which they are logged."""
        values = {"val/gates/unused_experts": self.unused_experts.sum(-1).float()}
        for i, task in enumerate(tasks):
            values[f"val/{task}/gate_entropy"] = self.entropy[..., i]
            values[f"val/{task}/effective_experts"] = self.effective_experts[..., i]
            values[f"val/{task}/polarised_rows"] = self.polarised[..., i]
            for expert in range(self.weights.shape[-1]):
                values[f"val/{task}/gate_{expert}"] = self.weights[..., i, expert]
            for j, other in enumerate(tasks[:i]):
                values[f"val/gates/similarity_{other}_{task}"] = self.similarity[..., j, i]
        return values

    def describe_collapse(self, tasks: Sequence[str]) -> str | None:
        """Describe the first gate that has collapsed; None if none has, or if there is only one expert."""
        largest, expert = self.weights.reshape(-1, *self.weights.shape[-2:]).max(-1)  # [R, T]
        bad = (largest > COLLAPSED).nonzero()
        if self.weights.shape[-1] == 1 or not len(bad):
            return None
        r, t = bad[0].tolist()
        where = f" in replica {r}" if self.weights.ndim == 3 else ""
        return f"the gate of {tasks[t]}{where} gives expert {expert[r, t]} {largest[r, t]:.0%} of its weight"


class GateStatistics:
    """Sum gate statistics over batches, in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: tuple[Tensor, ...] = ()

    def update(self, gates: Tensor) -> None:
        """Add the gate weights of a batch, [B, T, E]."""
        gates = gates.contiguous()  # `layers.softmax` returns another layout
        unit = nn.functional.normalize(gates, dim=-1).double()
        sums = (
            gates.sum(-3, dtype=torch.float64),
            torch.special.entr(gates).sum((-3, -1), dtype=torch.float64),
            (gates.amax(-1) > POLARISED).sum(-2).double(),
            torch.einsum("...bte,...bue->...tu", unit, unit),
        )
        self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True)) if self.rows else sums
        self.rows += gates.shape[-3]

    def summary(self, over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums) -> GateSummary:
        """Return the means and reset; `over_ranks` sums a tensor over all processes."""
        rows = over_ranks(torch.tensor(float(self.rows), dtype=torch.float64, device=self._sums[0].device))
        summary = GateSummary(*(over_ranks(sums) / rows for sums in self._sums))
        self.rows = 0
        return summary


def describe_constant_task(logits: Tensor, tasks: Sequence[Task]) -> str | None:
    """Describe the first task whose logits, in [N, L], are the same in all rows; None if there is none.

    This happens when all units of a tower are 0 in every row, so no gradient reaches them.
    """
    same = (logits.amax(-2) == logits.amin(-2)).reshape(-1, logits.shape[-1])  # [R, L]
    same = torch.stack([same[:, own].all(-1) for own in logit_columns(tasks)], dim=-1)  # [R, T]
    if logits.shape[-2] < 2 or not same.any():
        return None
    r, t = same.nonzero()[0].tolist()
    where = f" in replica {r}" if logits.ndim == 3 else ""
    return f"the predictions of {tasks[t].name}{where} are the same for all validation rows"


@torch.inference_mode()
def dead_units(network: nn.Module, levels: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    """For each ReLU, by module name, return a mask [units...]: True where a unit is 0 in every row.

    The result is empty for ensembles, because hooks cannot see the units of a single member.
    """
    dead: dict[str, Tensor] = {}
    if any(isinstance(module, Replicas) for module in network.modules()):
        return dead
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):

            def record(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                dead[name] = (output <= 0).all(0)

            hooks.append(module.register_forward_hook(record))
    try:
        if hooks:
            network(levels, numbers)
    finally:
        for hook in hooks:
            hook.remove()
    return dead
