"""What the gates of a mixture of experts do with the rows they see, for every task.

B batch, T tasks, E experts; replicas put R in front of everything.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmoe.data.encode import Rows
from mmoe.data.schema import Schema
from mmoe.models.replicas import Replicas

POLARISED = 0.9  # a row whose largest gate weight exceeds it
COLLAPSED = 0.9  # a gate whose mean weight of one expert exceeds it


class GateSummary(NamedTuple):
    """Means over rows.

    Shape:
        weights: [T, E]. entropy: [T], in nats. polarised: [T], the share of rows with a weight above
        POLARISED. similarity: [T, T], of the cosine between two tasks' weights.
    """

    weights: Tensor
    entropy: Tensor
    polarised: Tensor
    similarity: Tensor

    @property
    def effective_experts(self) -> Tensor:
        """exp(entropy), [T]: E where all experts are mixed evenly, 1 where one is taken."""
        return self.entropy.exp()

    @property
    def unused(self) -> Tensor:
        """Which experts no task gives a mean weight of 1 / (10 E), [E]."""
        return (self.weights < 0.1 / self.weights.shape[-1]).all(-2)

    def by_name(self, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Every number under the name it is logged by, `val/{task or "gates"}/{what}`."""
        values = {"val/gates/unused_experts": self.unused.sum(-1).float()}
        for i, task in enumerate(tasks):
            values[f"val/{task}/gate_entropy"] = self.entropy[..., i]
            values[f"val/{task}/effective_experts"] = self.effective_experts[..., i]
            values[f"val/{task}/polarised_rows"] = self.polarised[..., i]
            for expert in range(self.weights.shape[-1]):
                values[f"val/{task}/gate_{expert}"] = self.weights[..., i, expert]
            for j, other in enumerate(tasks[:i]):
                values[f"val/gates/similarity_{other}_{task}"] = self.similarity[..., j, i]
        return values

    def collapsed(self, tasks: Sequence[str]) -> str | None:
        """Which gate gives nearly all its weight to one expert, in words; None if none of several does."""
        largest, expert = self.weights.reshape(-1, *self.weights.shape[-2:]).max(-1)  # [R, T]
        bad = (largest > COLLAPSED).nonzero()
        if self.weights.shape[-1] == 1 or not len(bad):
            return None
        r, t = bad[0].tolist()
        of = f" of replica {r}" if self.weights.ndim == 3 else ""
        return f"the gate of {tasks[t]}{of} gives expert {expert[r, t]} {largest[r, t]:.0%} of its weight"


class GateStatistics:
    """Sums over the rows of batches, float64, of which `summary` gives the means."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: tuple[Tensor, ...] = ()

    def update(self, gates: Tensor) -> None:
        """Add the gate weights of a batch, [B, T, E]; they sum to 1 over E."""
        unit = nn.functional.normalize(gates, dim=-1)
        sums = (
            gates.sum(-3, dtype=torch.float64),
            torch.special.entr(gates).sum((-3, -1), dtype=torch.float64),
            (gates.amax(-1) > POLARISED).sum(-2).double(),
            torch.einsum("...bte,...bue->...btu", unit, unit).sum(-3, dtype=torch.float64),
        )
        self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True)) if self.rows else sums
        self.rows += gates.shape[-3]

    def summary(self, over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums) -> GateSummary:
        """The means over all rows since the last one; `over_ranks` adds up what several processes have."""
        rows = over_ranks(torch.tensor(float(self.rows), dtype=torch.float64, device=self._sums[0].device))
        found = GateSummary(*(over_ranks(sums) / rows for sums in self._sums))
        self.rows = 0
        return found


@torch.inference_mode()
def dead_units(network: nn.Module, codes: Tensor, numerics: Tensor) -> dict[str, Tensor]:
    """Which units of each ReLU are 0 in every row, by the module's name, [units...].

    Those of an ensemble are left out: a unit of one member cannot be looked at alone.
    """
    dead: dict[str, Tensor] = {}
    if any(isinstance(module, Replicas) for module in network.modules()):
        return dead
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):

            def note(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                dead[name] = (output <= 0).all(0)

            hooks.append(module.register_forward_hook(note))
    try:
        network(codes, numerics)
    finally:
        for hook in hooks:
            hook.remove()
    return dead


def blank_rows(schema: Schema, count: int = 2) -> Rows:
    """Rows without any level, with zeros as numbers and labels: enough to ask a network for its shapes."""
    return Rows(
        torch.full((count, len(schema.categorical)), schema.num_levels),
        torch.zeros(count, len(schema.numeric)),
        torch.zeros(count, len(schema.tasks)),
    )
