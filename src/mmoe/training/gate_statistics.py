"""Statistics of gate weights.

B batch, T tasks, E experts. With replicas, every shape starts with R.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
        gates = gates.movedim(-3, -1).contiguous()  # [T, E, B]; a CPU is faster along rows than along experts
        # `nn.functional.normalize` is slow along a dimension that is not the last one.
        smallest = torch.finfo(gates.dtype).tiny
        length = gates.square().sum(-2, keepdim=True).clamp_min(smallest).sqrt()  # [T, 1, B]
        unit = (gates / length).double().flatten(-2)  # [T, E * B]
        sums = (
            gates.sum(-1, dtype=torch.float64),
            (gates * -gates.clamp_min(smallest).log()).sum((-2, -1), dtype=torch.float64),
            (gates.amax(-2) > POLARISED).sum(-1).double(),
            unit @ unit.mT,
        )
        self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True)) if self.rows else sums
        self.rows += gates.shape[-1]

    def summary(self, sum_over_processes: Callable[[Tensor], Tensor] = lambda sums: sums) -> GateSummary:
        """Return the means and reset; `sum_over_processes` sums a tensor over all processes."""
        count = torch.tensor(float(self.rows), dtype=torch.float64, device=self._sums[0].device)
        rows = sum_over_processes(count)
        summary = GateSummary(*(sum_over_processes(sums) / rows for sums in self._sums))
        self.rows = 0
        return summary
