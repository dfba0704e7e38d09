"""Muon for a whole network: torch's takes matrices alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MuonAndAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the weight matrices, `torch.optim.AdamW` for every other parameter.

    Biases and stacked weights [N, I, O] are such others. Both have the same rate and weight decay, so a
    schedule changes both.

    Args:
        params: all parameters.
        lr: learning rate.
        weight_decay: decoupled.
        muon: further arguments of `torch.optim.Muon`.

    Raises:
        ValueError: an argument is outside its range, or no parameter is a matrix.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.1, **muon: Any
    ) -> None:
        every = list(params)
        matrices, others = ([p for p in every if (p.ndim == 2) is wanted] for wanted in (True, False))
        if not matrices:
            raise ValueError("Muon needs a parameter that is a matrix, and there is none")
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon)
        ]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))
        super().__init__(every, {"lr": lr, "weight_decay": weight_decay})
        self._share_groups()

    def _share_groups(self) -> None:
        """Let a schedule that changes our groups change those of the parts."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, after a closure that computes the gradients."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state by parameter."""
        return defaultdict(dict, {p: s for part in self.parts for p, s in part.state.items()})

    @state.setter
    def state(self, _: Any) -> None:
        """The parts have it."""
