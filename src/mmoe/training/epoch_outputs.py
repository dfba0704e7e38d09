"""The logits and labels of an epoch, kept for its metrics.

B batch, N rows, T tasks, R replicas.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_ROWS_ON_DEVICE = 2**20  # a GPU keeps the logits of at most this many rows


class EpochOutputs:
    """Logits [B, T] and labels [B, T] of each batch, by stage.

    With replicas, logits are [R, B, T], and labels are [R, B, T] unless all replicas share the rows. For
    training batches of replicas, B is 1: only the mean logits are kept.
    """

    def __init__(self) -> None:
        self._pairs: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._rows_on_device = 0

    def add(self, stage: str, number: int, logits: Tensor, labels: Tensor) -> None:
        """Keep batch `number` of an epoch. A repeated batch, as with LBFGS, replaces the earlier one."""
        pairs = self._pairs[stage]
        del pairs[number:]
        pairs.append((logits, labels))
        if logits.device.type != "cpu":
            self._rows_on_device += logits.shape[-2]
            if self._rows_on_device > MAX_ROWS_ON_DEVICE:
                self.to(torch.device("cpu"))

    def logits(self, stage: str) -> list[Tensor]:
        return [logits for logits, _ in self._pairs[stage]]

    def pop(self, stage: str, device: torch.device, may_stay_on_cpu: bool) -> tuple[Tensor, Tensor]:
        """Remove the epoch's logits [N, T] and labels [N, T], and return them on `device`.

        With `may_stay_on_cpu`, they are returned on the CPU if any of them are there.
        """
        pairs = self._pairs.pop(stage)
        if may_stay_on_cpu and any(logits.device != device for logits, _ in pairs):
            device = torch.device("cpu")
        self._count_rows_on_device()
        return _join(pairs, device)

    def to(self, device: torch.device) -> None:
        for stage, pairs in self._pairs.items():
            self._pairs[stage] = [(logits.to(device), labels.to(device)) for logits, labels in pairs]
        self._count_rows_on_device()

    def _count_rows_on_device(self) -> None:
        kept = [logits for pairs in self._pairs.values() for logits, _ in pairs]
        self._rows_on_device = sum(logits.shape[-2] for logits in kept if logits.device.type != "cpu")

    def state_dict(self) -> dict[str, Any]:
        """Join the batches of each stage, because thousands of small tensors take seconds to write."""
        return {
            stage: (*_join(pairs, torch.device("cpu")), [logits.shape[-2] for logits, _ in pairs])
            for stage, pairs in self._pairs.items()
            if pairs
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stage, (logits, labels, sizes) in state.items():
            parts = (tensor.split(sizes, dim=-2) for tensor in (logits, labels))
            self._pairs[stage] = list(zip(*parts, strict=True))


def _join(pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Join the logits and labels of batches on a device: [N, T] each."""
    logits, labels = (torch.cat([x.to(device) for x in parts], dim=-2) for parts in zip(*pairs, strict=True))
    return logits, labels
