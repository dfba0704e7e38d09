"""How gates weight the experts, and how an expert is masked.

B batch, T tasks, E experts, H expert width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmoe.errors import UserError

BMM_MIN_SIZE = 400  # below this many multiplications, torch.bmm on CPU uses a slow loop
PAD_MIN_ROWS = 256  # in smaller batches the padding costs more than the slow loop
SMALLEST = 1e-30  # weights are divided by their sum, or by this if the sum is smaller


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, transposed because that is faster on CPU."""
    return logits.movedim(-1, 0).softmax(0).movedim(0, -1)


def mix(gates: Tensor, experts: Tensor) -> Tensor:
    """Mix the experts for each task: einsum("bte,beh->bth", gates, experts).

    On CPU, `torch.bmm` is slow for small matrices, so the gates of large batches are padded with zeros.
    """
    num_rows, num_tasks, num_experts = gates.shape
    if gates.device.type == "cpu" and not torch.compiler.is_compiling() and num_rows >= PAD_MIN_ROWS:
        missing = math.ceil(BMM_MIN_SIZE / (num_experts * experts.shape[2])) - num_tasks
        gates = pad(gates, (0, 0, 0, max(0, missing)))
    return torch.bmm(gates, experts)[:, :num_tasks]  # [B, T, H]


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
        raise UserError("the model must have a module named gates, because the ablation masks its output")
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
