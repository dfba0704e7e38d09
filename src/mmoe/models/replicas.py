"""Independent copies of a network, trained side by side as one.

R replicas.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from mmoe.models.inputs import forbid_sums


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
        forbid_sums(self.stacked)

    def forward(self, *rows: Tensor, own_rows: bool = False) -> Any:
        """Apply every replica."""

        def apply(parameters: dict[str, Tensor], *rows: Tensor) -> Any:
            return functional_call(self.stacked, parameters, rows)

        in_dims = (0, *([0 if own_rows else None] * len(rows)))
        return torch.vmap(apply, in_dims, randomness="different")(self.parameters_by_name(), *rows)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters [R, ...], under the names that they have in one module."""
        return dict(self.stacked.named_parameters())
