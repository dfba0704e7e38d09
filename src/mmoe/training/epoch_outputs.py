"""The logits, labels and groups of an epoch, kept for its metrics.

B batch, T tasks, L logits of all tasks, R replicas, K chosen rows.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_ROWS = 2**20  # the outputs of about this many rows are kept
MAX_ROWS_ON_DEVICE = 2**20  # a GPU keeps the logits of at most this many rows


class LabelledLogits(NamedTuple):
    """Logits [B, L], labels [B, T], `known` (None or [B, T]) and groups (None or [B, 1]) of rows."""

    logits: Tensor
    labels: Tensor
    known: Tensor | None = None
    groups: Tensor | None = None

    def to(self, device: torch.device) -> "LabelledLogits":
        """The same rows on a device."""
        return LabelledLogits(*(None if tensor is None else tensor.to(device) for tensor in self))  # type: ignore[arg-type]

    def select(self, rows: Tensor) -> "LabelledLogits":
        """The rows at the positions `rows` [K]."""
        return LabelledLogits(*(None if tensor is None else tensor.index_select(-2, rows) for tensor in self))  # type: ignore[arg-type]

    def by_replica(self) -> "list[LabelledLogits]":
        """The outputs of each replica. Those without R are shared by all of them."""
        parts = zip(*(repeat(x) if x is None or x.ndim == 2 else x for x in self), strict=False)
        return [LabelledLogits(*own) for own in parts]


class EpochOutputs:
    """The `LabelledLogits` of each batch, by stage.

    With replicas, logits are [R, B, L], and labels are [R, B, T] unless all replicas share the rows. For
    training batches of replicas, B is 1: only the mean logits are kept.
    """

    def __init__(self) -> None:
        self._batches: defaultdict[str, list[LabelledLogits]] = defaultdict(list)
        self._taken: Counter[str] = Counter()  # batches of the epoch that are no longer kept
        self._rows_on_device = 0

    def add(self, stage: str, number: int, batch: LabelledLogits) -> None:
        """Keep batch `number` of an epoch. A repeated batch, as with LBFGS, replaces the earlier one."""
        batches = self._batches[stage]
        if number == 0:
            self._taken[stage] = 0
        del batches[number - self._taken[stage] :]
        batches.append(batch)
        if batch.logits.device.type != "cpu":
            self._rows_on_device += batch.logits.shape[-2]
            if self._rows_on_device > MAX_ROWS_ON_DEVICE:
                self.to(torch.device("cpu"))

    def logits(self, stage: str) -> list[Tensor]:
        return [batch.logits for batch in self._batches[stage]]

    def num_taken(self, stage: str) -> int:
        """The number of batches of the epoch that are no longer kept."""
        return self._taken[stage]

    def is_full(self, stage: str, number: int) -> bool:
        """Whether so many rows are kept that some must go before batch `number` is added."""
        batches = self._batches[stage]
        is_new = number == self._taken[stage] + len(batches)
        return bool(is_new and batches and len(batches) * batches[0].logits.shape[-2] >= MAX_ROWS)

    def drop_half(self, stage: str) -> list[Tensor]:
        """Remove the older half of the batches, and return their logits."""
        batches = self._batches[stage]
        count = (len(batches) + 1) // 2
        dropped = [batch.logits for batch in batches[:count]]
        del batches[:count]
        self._taken[stage] += count
        self._count_rows_on_device()
        return dropped

    def take(self, stage: str, device: torch.device, may_stay_on_cpu: bool) -> LabelledLogits | None:
        """Remove the outputs that are kept, and return them on `device`; None if there are none.

        With `may_stay_on_cpu`, they are returned on the CPU if any of them are there.
        """
        batches = self._batches.pop(stage, [])
        self._taken[stage] += len(batches)
        if may_stay_on_cpu and any(batch.logits.device != device for batch in batches):
            device = torch.device("cpu")
        self._count_rows_on_device()
        return join(batches, device) if batches else None

    def to(self, device: torch.device) -> None:
        for stage, batches in self._batches.items():
            self._batches[stage] = [batch.to(device) for batch in batches]
        self._count_rows_on_device()

    def _count_rows_on_device(self) -> None:
        kept = [batch.logits for batches in self._batches.values() for batch in batches]
        self._rows_on_device = sum(logits.shape[-2] for logits in kept if logits.device.type != "cpu")

    def state_dict(self) -> dict[str, Any]:
        """Join the batches of each stage, because thousands of small tensors take seconds to write."""
        kept = {
            stage: (*join(batches, torch.device("cpu")), [batch.logits.shape[-2] for batch in batches])
            for stage, batches in self._batches.items()
            if batches
        }
        return {"kept": kept, "taken": dict(self._taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._taken = Counter(state["taken"])
        for stage, (*tensors, sizes) in state["kept"].items():
            parts = ([None] * len(sizes) if one is None else one.split(sizes, dim=-2) for one in tensors)
            self._batches[stage] = [LabelledLogits(*batch) for batch in zip(*parts, strict=True)]


def join(batches: Sequence[LabelledLogits], device: torch.device) -> LabelledLogits:
    """Join the batches on a device."""
    columns = zip(*(batch.to(device) for batch in batches), strict=True)
    tensors = (None if column[0] is None else torch.cat(column, dim=-2) for column in columns)
    return LabelledLogits(*tensors)  # type: ignore[arg-type]
