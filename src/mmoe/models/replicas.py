"""Independent copies of a network, trained side by side.

B batch, R replicas.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.models.inputs import Inputs, checked_before_vmap


class Replicas(nn.Module):
    """R modules of the same architecture, applied in one call.

    The parameters are stacked to [R, ...] and keep their names, under `stacked`. So are the buffers that
    differ, such as the columns that a unit sees; all replicas share the others. Each replica has its own
    dropout.

    Args:
        modules: R modules that differ only in the values of their parameters and buffers.

    Shape:
        rows: tensors, `SparseInputs` or a `SparseMatrix` that all replicas share, or None. With
            `own_rows`, tensors [R, B, ...] with one slice for each replica, or None.
        output: the output of a module, with R as an additional first dimension.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stacked = copy.deepcopy(modules[0])
        parameters, buffers = stack_module_state(list(modules))
        own_buffers = {name: values for name, values in buffers.items() if not (values == values[:1]).all()}
        self._own_buffers = tuple(own_buffers)
        own = {name: nn.Parameter(one.detach(), one.requires_grad) for name, one in parameters.items()}
        self._replace({**own, **own_buffers})
        self._has_inputs = any(isinstance(part, Inputs) for part in self.stacked.modules())
        for part in self.stacked.modules():
            if isinstance(part, nn.Embedding):
                part.sparse = False  # vmap has no sparse gradients

    def forward(self, *rows: Any, own_rows: bool = False) -> Any:
        in_dims = (0, tuple(0 if own_rows and tensor is not None else None for tensor in rows))
        own = {name: self.stacked.get_buffer(name) for name in self._own_buffers}
        stacked = {**self.parameters_by_name(), **own}
        apply = torch.vmap(partial(functional_call, self.stacked), in_dims, randomness="different")
        is_encoded = any(isinstance(one, SparseMatrix) for one in rows)  # such rows were checked before
        if is_encoded or not self._has_inputs:
            return apply(stacked, rows)
        levels, numbers = (tensor.flatten(0, 1) if own_rows else tensor for tensor in rows[:2])
        with checked_before_vmap(self.stacked, levels, numbers):
            return apply(stacked, rows)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters [R, ...] by their names in a single module."""
        return dict(self.stacked.named_parameters())

    def _replace(self, stacked: Mapping[str, Tensor]) -> None:
        """Replace parameters and buffers by name. One that several modules share has several names."""
        tensors = [
            *self.stacked.named_parameters(remove_duplicate=False),
            *self.stacked.named_buffers(remove_duplicate=False),
        ]
        by_id = {id(tensor): stacked[name] for name, tensor in tensors if name in stacked}
        for name, tensor in tensors:
            if id(tensor) in by_id:
                owner, _, leaf = name.rpartition(".")
                setattr(self.stacked.get_submodule(owner), leaf, by_id[id(tensor)])
