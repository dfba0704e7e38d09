"""Independent copies of a network, trained side by side.

R replicas, M members of an ensemble.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from mmoe.models.inputs import Inputs, use_dense_inputs


class Replicas(nn.Module):
    """R modules of the same architecture, applied in one call.

    The parameters are stacked to [R, ...] and keep their names, under `stacked`. All replicas share the first
    module's buffers, such as the scales of numeric columns. Each replica has its own dropout.

    Args:
        modules: R modules that differ only in the values of their parameters.

    Shape:
        rows: tensors that all replicas share, or None. With `own_rows`, tensors [R, ...] with one slice for
            each replica.
        output: the output of a module, with R as an additional first dimension.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stacked = copy.deepcopy(modules[0])
        for name, values in stack_module_state(list(modules))[0].items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.stacked.get_submodule(owner), leaf, nn.Parameter(values.detach()))
        use_dense_inputs(self.stacked)
        for part in self.stacked.modules():
            if isinstance(part, nn.Embedding):
                part.sparse = False  # vmap has no sparse gradients

    def forward(self, *rows: Any, own_rows: bool = False) -> Any:
        for part in self.stacked.modules():
            if isinstance(part, Inputs):
                levels, numbers = (tensor.flatten(0, 1) if own_rows else tensor for tensor in rows[:2])
                part.numbers_in_range = part.check(levels, numbers)
        apply = partial(functional_call, self.stacked)
        in_dims = (0, tuple(0 if own_rows and tensor is not None else None for tensor in rows))
        return torch.vmap(apply, in_dims, randomness="different")(self.parameters_by_name(), rows)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters [R, ...] by their names in a single module."""
        return dict(self.stacked.named_parameters())


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
    """The gradient, or the values of a sparse one, which is coalesced first; they share their memory."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()
        return gradient.values()
    return gradient
