"""The logits, labels and groups of an epoch, kept for its metrics.

B batch, N rows, T tasks, L logits of all tasks, R replicas.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_ROWS_ON_DEVICE = 2**20  # a GPU keeps the logits of at most this many rows


class Outputs(NamedTuple):
    """Logits [B, L], labels [B, T], `known` (None or [B, T]) and groups (None or [B, 1]) of rows."""

    logits: Tensor
    labels: Tensor
    known: Tensor | None = None
    groups: Tensor | None = None

    def to(self, device: torch.device) -> "Outputs":
        """The same rows on a device."""
        return Outputs(*(None if tensor is None else tensor.to(device) for tensor in self))  # type: ignore[arg-type]


class EpochOutputs:
    """The `Outputs` of each batch, by stage.

    With replicas, logits are [R, B, L], and labels are [R, B, T] unless all replicas share the rows. For
    training batches of replicas, B is 1: only the mean logits are kept.
    """

    def __init__(self) -> None:
        self._batches: defaultdict[str, list[Outputs]] = defaultdict(list)
        self._rows_on_device = 0

    def add(self, stage: str, number: int, batch: Outputs) -> None:
        """Keep batch `number` of an epoch. A repeated batch, as with LBFGS, replaces the earlier one."""
        batches = self._batches[stage]
        del batches[number:]
        batches.append(batch)
        if batch.logits.device.type != "cpu":
            self._rows_on_device += batch.logits.shape[-2]
            if self._rows_on_device > MAX_ROWS_ON_DEVICE:
                self.to(torch.device("cpu"))

    def logits(self, stage: str) -> list[Tensor]:
        return [batch.logits for batch in self._batches[stage]]

    def pop(self, stage: str, device: torch.device, may_stay_on_cpu: bool) -> Outputs:
        """Remove the epoch's outputs, and return them on `device`.

        With `may_stay_on_cpu`, they are returned on the CPU if any of them are there.
        """
        batches = self._batches.pop(stage)
        if may_stay_on_cpu and any(batch.logits.device != device for batch in batches):
            device = torch.device("cpu")
        self._count_rows_on_device()
        return _join(batches, device)

    def to(self, device: torch.device) -> None:
        for stage, batches in self._batches.items():
            self._batches[stage] = [batch.to(device) for batch in batches]
        self._count_rows_on_device()

    def _count_rows_on_device(self) -> None:
        kept = [batch.logits for batches in self._batches.values() for batch in batches]
        self._rows_on_device = sum(logits.shape[-2] for logits in kept if logits.device.type != "cpu")

    def state_dict(self) -> dict[str, Any]:
        """Join the batches of each stage, because thousands of small tensors take seconds to write."""
        return {
            stage: (*_join(batches, torch.device("cpu")), [batch.logits.shape[-2] for batch in batches])
            for stage, batches in self._batches.items()
            if batches
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for stage, (*tensors, sizes) in state.items():
            parts = ([None] * len(sizes) if one is None else one.split(sizes, dim=-2) for one in tensors)
            self._batches[stage] = [Outputs(*batch) for batch in zip(*parts, strict=True)]


def _join(batches: Sequence[Outputs], device: torch.device) -> Outputs:
    """Join the batches on a device."""
    columns = zip(*(batch.to(device) for batch in batches), strict=True)
    tensors = (None if column[0] is None else torch.cat(column, dim=-2) for column in columns)
    return Outputs(*tensors)  # type: ignore[arg-type]
