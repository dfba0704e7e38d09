"""Build an optimizer. Torch's Muon takes only matrices, so AdamW takes the other parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.errors import ArgumentError, UserError

FUSED = (torch.optim.Adam, torch.optim.AdamW)


def build_optimizer(
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Build an optimizer. Adam and AdamW use torch's fused kernel, and Muon becomes `MuonAndAdamW`.

    Raises:
        UserError: the optimizer refuses its arguments.
    """
    if isinstance(make, partial) and make.func is getattr(torch.optim, "Muon", None):
        make = partial(MuonAndAdamW, *make.args, **make.keywords)
    elif isinstance(make, partial) and make.func in FUSED and not make.keywords.keys() & {"fused", "foreach"}:
        make = partial(make, fused=True)
    try:
        return make(parameters)
    except (ValueError, TypeError) as error:
        raise UserError(f"learner.optimizer: {error}") from error


class MuonAndAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for matrices, and `torch.optim.AdamW` for biases and stacked weights [N, I, O].

    Both use the same learning rate and weight decay, and a schedule changes both. `muon` holds further
    arguments of `torch.optim.Muon`.

    Raises:
        ArgumentError: no parameter is a matrix.
        ValueError: torch refuses an argument.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.1, **muon: Any
    ) -> None:
        parameters = list(params)
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        if not matrices:
            raise ArgumentError("params: must have at least one matrix for Muon")
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon)
        ]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._share_groups()

    def _share_groups(self) -> None:
        """Expose the groups of both parts, so that a schedule changes both."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        return defaultdict(dict, {p: s for part in self.parts for p, s in part.state.items()})

    @state.setter
    def state(self, _: Any) -> None:
        """Ignore the value that torch's constructor sets, because the parts hold the state."""
