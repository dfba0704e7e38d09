"""Independent copies of a network, trained side by side as one.

R replicas.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from mmoe.models.inputs import Inputs, prepare_for_vmap


class Replicas(nn.Module):
    """R modules of one structure, applied by one call: their parameters are stacked, [R, ...].

    The parameters keep their names, under `stacked`. Buffers are those of the first module: what is not
    trained, such as the scales of numeric columns, is computed once for all. Dropout differs by replica.

    Args:
        modules: the R modules, which differ in the values of their parameters alone.

    Shape:
        rows: tensors [...] that all replicas share, or [R, ...] where `own_rows`.
        output: that of a module, with R in front.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stacked = copy.deepcopy(modules[0])
        for name, values in stack_module_state(list(modules))[0].items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.stacked.get_submodule(owner), leaf, nn.Parameter(values.detach()))
        prepare_for_vmap(self.stacked)

    def forward(self, *rows: Tensor, own_rows: bool = False) -> Any:
        """Apply every replica."""

        def apply(parameters: dict[str, Tensor], *rows: Tensor) -> Any:
            return functional_call(self.stacked, parameters, rows)

        in_dims = (0, *([0 if own_rows else None] * len(rows)))
        inputs = [module for module in self.stacked.modules() if isinstance(module, Inputs)]
        for part in inputs:
            codes, numerics = (tensor.flatten(0, 1) if own_rows else tensor for tensor in rows[:2])
            part.usual = part.is_usual(codes, numerics)
        return torch.vmap(apply, in_dims, randomness="different")(self.parameters_by_name(), *rows)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters [R, ...], under the names that they have in one module."""
        return dict(self.stacked.named_parameters())


def clip_each(parameters: Sequence[Tensor], most: float, stacked_dims: int = 1) -> None:
    """Scale the gradients of each copy whose norm over all `parameters` [R, ...] is above `most`.

    As `torch.nn.utils.clip_grad_norm_` would for each copy alone. `stacked_dims` is 2 for ensembles that are
    replicated, [R, M, ...], and 0 for what is not stacked.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norms = torch.stack([g.flatten(stacked_dims).norm(dim=stacked_dims) for g in gradients])
    scale = (most / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)  # [R]
    for gradient in gradients:
        gradient.mul_(scale.view(*scale.shape, *[1] * (gradient.ndim - stacked_dims)))
