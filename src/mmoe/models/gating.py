"""How gates weight the experts.

B batch, T tasks, E experts, H expert width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

BMM_MIN_SIZE = 400  # below this many multiplications, torch.bmm on CPU uses a slow loop
PAD_MIN_ROWS = 256  # in smaller batches the padding costs more than the slow loop


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
