"""The logits and labels of an epoch, kept for its metrics.

B batch, N rows, T tasks, R replicas.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

MOST_ON_DEVICE = 2**20  # a GPU keeps the logits of at most this many rows


class EpochOutputs:
    """Logits [B, T] and labels [B, T] of each batch, by stage.

    With replicas, logits are [R, B, T], and labels are [R, B, T] unless all replicas share the rows.
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
            if self._rows_on_device > MOST_ON_DEVICE:
                self.to(torch.device("cpu"))
                self._rows_on_device = 0

    def logits(self, stage: str) -> list[Tensor]:
        return [logits for logits, _ in self._pairs[stage]]

    def pop(self, stage: str, device: torch.device, stay: bool) -> tuple[Tensor, Tensor]:
        """Remove the epoch's logits [N, T] and labels [N, T], and return them on `device`.

        With `stay`, they are returned on the CPU if any of them are there.
        """
        pairs = self._pairs.pop(stage)
        if stay and any(logits.device != device for logits, _ in pairs):
            device = torch.device("cpu")
        others = [logits for other_pairs in self._pairs.values() for logits, _ in other_pairs]
        self._rows_on_device = sum(part.shape[-2] for part in others if part.device.type != "cpu")
        logits, labels = (
            torch.cat([part.to(device) for part in parts], dim=-2) for parts in zip(*pairs, strict=True)
        )
        return logits, labels

    def to(self, device: torch.device) -> None:
        for stage, pairs in self._pairs.items():
            self._pairs[stage] = [(logits.to(device), labels.to(device)) for logits, labels in pairs]

    def clear(self) -> None:
        self._pairs.clear()

    def state_dict(self) -> dict[str, Any]:
        """Join the batches of each stage, because thousands of small tensors take seconds to write."""
        state = {}
        for stage, pairs in self._pairs.items():
            if pairs:
                logits, labels = (
                    torch.cat([part.cpu() for part in parts], dim=-2) for parts in zip(*pairs, strict=True)
                )
                state[stage] = (logits, labels, [part.shape[-2] for part, _ in pairs])
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stage, (logits, labels, sizes) in state.items():
            parts = (tensor.split(sizes, dim=-2) for tensor in (logits, labels))
            self._pairs[stage] = list(zip(*parts, strict=True))
