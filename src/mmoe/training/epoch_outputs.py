"""The logits and labels of an epoch, kept for its metrics.

B batch, N rows, T tasks, L logits of all tasks, R replicas.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_ROWS_ON_DEVICE = 2**20  # a GPU keeps the logits of at most this many rows


Outputs = tuple[Tensor, Tensor, Tensor | None]


class EpochOutputs:
    """Logits [B, L], labels [B, T] and `known` (None or [B, T]) of each batch, by stage.

    With replicas, logits are [R, B, L], and labels are [R, B, T] unless all replicas share the rows. For
    training batches of replicas, B is 1: only the mean logits are kept.
    """

    def __init__(self) -> None:
        self._batches: defaultdict[str, list[Outputs]] = defaultdict(list)
        self._rows_on_device = 0

    def add(
        self, stage: str, number: int, logits: Tensor, labels: Tensor, known: Tensor | None = None
    ) -> None:
        """Keep batch `number` of an epoch. A repeated batch, as with LBFGS, replaces the earlier one."""
        batches = self._batches[stage]
        del batches[number:]
        batches.append((logits, labels, known))
        if logits.device.type != "cpu":
            self._rows_on_device += logits.shape[-2]
            if self._rows_on_device > MAX_ROWS_ON_DEVICE:
                self.to(torch.device("cpu"))

    def logits(self, stage: str) -> list[Tensor]:
        return [logits for logits, _, _ in self._batches[stage]]

    def pop(self, stage: str, device: torch.device, may_stay_on_cpu: bool) -> Outputs:
        """Remove the epoch's logits [N, L], labels and `known` [N, T], and return them on `device`.

        With `may_stay_on_cpu`, they are returned on the CPU if any of them are there.
        """
        batches = self._batches.pop(stage)
        if may_stay_on_cpu and any(logits.device != device for logits, _, _ in batches):
            device = torch.device("cpu")
        self._count_rows_on_device()
        return _join(batches, device)

    def to(self, device: torch.device) -> None:
        for stage, batches in self._batches.items():
            self._batches[stage] = [_move(batch, device) for batch in batches]
        self._count_rows_on_device()

    def _count_rows_on_device(self) -> None:
        kept = [logits for batches in self._batches.values() for logits, _, _ in batches]
        self._rows_on_device = sum(logits.shape[-2] for logits in kept if logits.device.type != "cpu")

    def state_dict(self) -> dict[str, Any]:
        """Join the batches of each stage, because thousands of small tensors take seconds to write."""
        return {
            stage: (*_join(batches, torch.device("cpu")), [logits.shape[-2] for logits, _, _ in batches])
            for stage, batches in self._batches.items()
            if batches
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stage, (logits, labels, known, sizes) in state.items():
            parts = (tensor.split(sizes, dim=-2) for tensor in (logits, labels))
            masks = [None] * len(sizes) if known is None else known.split(sizes, dim=-2)
            self._batches[stage] = list(zip(*parts, masks, strict=True))


def _move(batch: Outputs, device: torch.device) -> Outputs:
    logits, labels, known = batch
    return logits.to(device), labels.to(device), None if known is None else known.to(device)


def _join(batches: Sequence[Outputs], device: torch.device) -> Outputs:
    """Join the batches on a device: logits [N, L], labels and `known` [N, T]."""
    logits, labels, known = zip(*(_move(batch, device) for batch in batches), strict=True)
    joined = None if known[0] is None else torch.cat(known, dim=-2)
    return torch.cat(logits, dim=-2), torch.cat(labels, dim=-2), joined
