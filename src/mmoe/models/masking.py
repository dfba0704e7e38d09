"""Mask an expert of a trained network.

B batch, T tasks, E experts.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmoe.errors import UserError

SMALLEST = 1e-30  # weights are divided by their sum, or by this if the sum is smaller


@contextmanager
def masked_expert(network: nn.Module, expert: int) -> Iterator[None]:
    """Set the gate weight of an expert to 0 in a network, and renormalise the others.

    The model must have a module with the name `gates` that returns gate logits [B, T, E] (an OMoE:
    [B, 1, E]). If it returns weights, its class has an attribute `returns_weights`. A PLE and an AdaTT have
    gates in every level; those of the last level, which feed the towers, are masked.

    Raises:
        UserError: there is no such module.
    """
    modules = dict(network.named_modules())
    named = [name for name in modules if name.split(".")[-1] == "gates"]
    if not named:
        raise UserError("the model must have a module named gates, whose output is masked")
    gates = modules[named[-1]]
    are_weights = getattr(gates, "returns_weights", False)

    def mask(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        is_masked = torch.arange(output.shape[-1], device=output.device) == expert
        if not are_weights:
            return output.masked_fill(is_masked, -math.inf)
        kept = output.masked_fill(is_masked, 0.0)
        return kept / kept.sum(-1, keepdim=True).clamp(min=SMALLEST)

    hook = gates.register_forward_hook(mask)
    try:
        yield
    finally:
        hook.remove()
