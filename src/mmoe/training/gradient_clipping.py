"""Clip gradients where Lightning cannot: those of each network by their own norm, and sparse gradients.

R replicas, M members of an ensemble.
"""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mmoe.models.ensemble import Ensemble


def clips_scaled_gradients(trainer: pl.Trainer | None) -> bool:
    """Whether a trainer clips gradients of scaled losses. A fused optimizer would unscale them too late."""
    return trainer is not None and trainer.precision == "16-mixed" and bool(trainer.gradient_clip_val)


def needs_own_clipping(objective: nn.Module) -> bool:
    """Whether a module has an ensemble, or sparse gradients, which torch cannot clip."""
    has_tables = any(p.grad is not None and p.grad.is_sparse for p in objective.parameters())
    return has_tables or any(isinstance(m, Ensemble) for m in objective.modules())


def clip_by_network(objective: nn.Module, max_norm: float, has_replicas: bool) -> None:
    """Clip the gradients of each replica, and of each member of an ensemble, by its own norm."""
    ensembles = [m for m in objective.modules() if isinstance(m, Ensemble)]
    members = {id(p) for ensemble in ensembles for p in ensemble.members.parameters()}
    for is_member in (True, False):
        chosen = [p for p in objective.parameters() if (id(p) in members) is is_member]
        clip_grad_norm_per_copy(chosen, max_norm, stacked_dims=has_replicas + is_member)


def clip_by_value(objective: nn.Module, limit: float) -> None:
    """Limit each entry of the gradients, dense or sparse, to [-limit, limit]."""
    for parameter in objective.parameters():
        if parameter.grad is not None:
            _gradient_values(parameter).clamp_(-limit, limit)


def clip_grad_norm_per_copy(parameters: Sequence[Tensor], max_norm: float, stacked_dims: int = 1) -> None:
    """Clip the gradients of each copy by its own norm, as torch's `clip_grad_norm_` does for one network.

    Args:
        parameters: the parameters of all copies, stacked in the first dimensions.
        max_norm: the largest norm that one copy's gradients may have.
        stacked_dims: number of stacked dimensions: 1 for replicas [R, ...] or members of an ensemble
            [M, ...], 2 for replicas of an ensemble [R, M, ...], 0 for a single network.
    """
    gradients = [_gradient_values(p) for p in parameters if p.grad is not None]
    if not gradients:
        return
    norms = torch.stack([g.reshape(*g.shape[:stacked_dims], -1).norm(dim=-1) for g in gradients])
    scale = (max_norm / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)  # [R], [M] or [R, M]
    for gradient in gradients:
        gradient.mul_(scale.view(*scale.shape, *[1] * (gradient.ndim - stacked_dims)))  # [R, 1, ...]


def _gradient_values(parameter: Tensor) -> Tensor:
    """The gradient, or the values of a sparse one, which is coalesced first. Both may be changed in place."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()
        return gradient.values()
    return gradient
