"""Choose the number of torch's intra-op threads for the steps of a training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmoe.checks.arguments import check_integers
from mmoe.errors import UserError

# A thread is worth starting for this many multiplications: the rows of a step times the weights. With fewer,
# a second thread gains little, and if another program needs its core, both threads wait for each other, and a
# step takes several times as long.
WORK_PER_THREAD = 2**28


def num_threads(configured: Any, batch_size: int, network: nn.Module) -> int:
    """The threads for steps of `batch_size` rows; `configured` is their number, or `auto`.

    `auto` depends on the batch size and the network, so the same command computes the same bits on a busy
    machine. It is at most torch's own number of threads. With OMP_NUM_THREADS, it is that number.

    Raises:
        UserError: `configured` is neither.
    """
    if configured != "auto":
        if isinstance(configured, str):
            raise UserError(f"threads={configured}: must be auto or an integer of at least 1")
        return check_integers(1, threads=configured)[0]
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    tables = {id(part.weight) for part in network.modules() if isinstance(part, nn.Embedding)}
    weights = sum(weight.numel() for weight in network.parameters() if id(weight) not in tables)
    return max(1, min(torch.get_num_threads(), batch_size * weights // WORK_PER_THREAD))


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Use `count` threads in this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
