"""Build an optimizer: torch's own, or several that act as one.

Torch's Muon takes only matrices, so AdamW takes the other parameters. Tables of learned vectors with sparse
gradients get `RowAdam`, which updates only the rows of a batch.

V vectors of a table, D their size, K vectors with a gradient. N stacked layers, I inputs, O outputs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.errors import ArgumentError, UserError
from mmoe.models.replicas import Replicas

FUSED = (torch.optim.Adam, torch.optim.AdamW)


def build_optimizer(
    make: Callable[[Iterable[Any]], torch.optim.Optimizer],
    module: nn.Module,
    task_weights: Sequence[nn.Parameter] = (),
    may_fuse: bool = True,
) -> torch.optim.Optimizer:
    """Build the optimizer of a module's parameters, and of task weights that a balancing strategy learns.

    Adam and AdamW use torch's fused kernel if `may_fuse` is true, and Muon becomes `MuonAndAdamW`. Parameters
    with sparse gradients get `RowAdam`, and the task weights Adam, with the same learning rate and without
    weight decay.

    Raises:
        UserError: the optimizer refuses its arguments.
    """
    if isinstance(make, partial) and make.func is getattr(torch.optim, "Muon", None):
        make = partial(MuonAndAdamW, *make.args, **make.keywords)
    elif isinstance(make, partial) and make.func in FUSED and not make.keywords.keys() & {"fused", "foreach"}:
        make = partial(make, fused=may_fuse)
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    tables: list[Any] = [part.weight for part in embeddings if part.sparse]
    table_ids = {id(table) for table in tables}
    parameters: list[Any] = [(name, p) for name, p in module.named_parameters() if id(p) not in table_ids]
    if not (isinstance(make, partial) and make.func is MuonAndAdamW):
        parameters = [parameter for _, parameter in parameters]
    elif any(isinstance(part, Replicas) for part in module.modules()):
        raise UserError("learner.optimizer: Muon needs matrices, and replicas and ensembles stack them")
    try:
        optimizer = make(parameters)
        shared = {key: optimizer.defaults[key] for key in ("lr", "betas", "eps") if key in optimizer.defaults}
        parts = [optimizer]
        if tables:
            parts.append(RowAdam(tables, **shared))
        if task_weights:
            parts.append(torch.optim.Adam(task_weights, **shared))
        return JoinedOptimizers(parts) if len(parts) > 1 else optimizer
    except (ValueError, TypeError) as error:
        raise UserError(f"learner.optimizer: {error}") from error


class RowAdam(torch.optim.Optimizer):
    """Adam for sparse gradients: it changes only the rows of a parameter [V, D] that have a gradient.

    It computes what `torch.optim.SparseAdam` computes, in half the time.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        self.update()
        return loss

    def update(self) -> None:
        """Take a step without the hooks that torch calls in `step`, because they take time."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update_rows(parameter, parameter.grad.coalesce(), **group)

    def _update_rows(
        self, parameter: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], eps: float, **_: Any
    ) -> None:
        state = self.state[parameter]
        if not state:
            # Both moments of a row lie side by side, because reading memory takes most of the time.
            # `zero_` makes the system allocate the memory now. `torch.zeros` would delay it to later steps.
            moments = torch.empty(len(parameter), 2, parameter.shape[1], dtype=parameter.dtype).zero_()
            state |= {"step": 0, "moments": moments.to(parameter.device)}
        state["step"] += 1
        rows, values = gradient.indices()[0], gradient.values()
        moments = state["moments"].index_select(0, rows)  # [K, 2, D]
        mean, square = moments.unbind(1)
        mean.lerp_(values, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(values, values, value=1 - betas[1])
        state["moments"].index_copy_(0, rows, moments)
        mean_scale, square_scale = (1 - beta ** state["step"] for beta in betas)
        change = mean / square.sqrt().add_(eps)
        parameter.index_add_(0, rows, change, alpha=-lr * square_scale**0.5 / mean_scale)


class JoinedOptimizers(torch.optim.Optimizer):
    """Several optimizers of different parameters that act as one. A schedule changes all of them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]
        super().__init__(parameters, dict(self.parts[0].defaults))
        self._share_groups()

    def _share_groups(self) -> None:
        """Expose the groups of all parts, so that a schedule changes all of them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for part in self.parts:
            if isinstance(part, RowAdam):
                part.update()
            else:
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


class MuonAndAdamW(JoinedOptimizers):
    """`torch.optim.Muon` for matrices, and `torch.optim.AdamW` for biases and stacked weights [N, I, O].

    `params` are named parameters. Both parts use the same learning rate and weight decay. `muon` holds
    further arguments of `torch.optim.Muon`.

    Raises:
        ArgumentError: no parameter is a matrix.
        ValueError: torch refuses an argument.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        **muon: Any,
    ) -> None:
        named = list(params)
        # The bias of a stacked layer [N, O] has two dimensions, too.
        matrices = [p for name, p in named if p.ndim == 2 and not name.endswith("bias")]
        others = [p for name, p in named if p.ndim != 2 or name.endswith("bias")]
        if not matrices:
            raise ArgumentError("params: must have at least one matrix for Muon")
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon)
        ]
        if others:
            parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))
        super().__init__(parts)
