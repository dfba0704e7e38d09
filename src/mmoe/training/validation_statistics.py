"""Statistics of gates and ReLUs on the validation rows, and warnings of collapse and constant output.

B batch, N rows, T tasks, L logits of all tasks, E experts, R replicas.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from torch import Tensor, nn

from mmoe.data.batch import Batch, take
from mmoe.models.dead_units import dead_units_recorded
from mmoe.models.mmoe import MMoE
from mmoe.models.replicas import Replicas
from mmoe.tasks import Task, logit_columns
from mmoe.training.epoch_outputs import LabelledLogits
from mmoe.training.gate_statistics import GateStatistics
from mmoe.training.objective import Objective

log = logging.getLogger(__name__)

DEAD_UNIT_ROWS = 2048  # a ReLU unit that is 0 in this many rows counts as dead
COLLAPSE_REMEDY = "; a larger model.gate_temperature or model.gate_dropout=0.1 makes it use other experts too"
DEAD_TOWER_REMEDY = (
    "; all units of its tower may be 0; try model.activation=gelu or a lower learner.optimizer.lr"
)


class ValidationStatistics:
    """Collect the gate weights of a validation, and compute the statistics at its end."""

    def __init__(self, objective: Objective) -> None:
        self._tasks = list(objective.tasks)
        self._collapse_remedy = COLLAPSE_REMEDY if isinstance(objective.network.model, MMoE) else ""
        self._gates = GateStatistics()
        self._warned: set[str] = set()

    def add(self, gates: Tensor) -> None:
        """Add the gate weights of a batch, [B, T, E], or [R, B, T, E] for replicas; E may be 0."""
        if gates.shape[-1]:
            self._gates.update(gates)

    def finish(
        self, objective: nn.Module, first_rows: Batch, outputs: LabelledLogits | None, trainer: pl.Trainer
    ) -> dict[str, Tensor]:
        """Compute all statistics by name.

        During training, warn of a collapsed gate, or of a task whose predictions are all equal. `first_rows`
        are the first validation rows. `outputs` are those of all validation rows, or None if not kept.
        """
        share = share_of_dead_units(objective, first_rows, trainer.precision_plugin)
        values = {} if share is None else {"val/units/dead": share}
        warns = trainer.state.fn == "fit" and not trainer.sanity_checking
        if outputs is not None and warns and trainer.is_global_zero:
            self._warn_once(describe_constant_task(outputs.logits, self._tasks), DEAD_TOWER_REMEDY)
        if self._gates.rows:
            names = [task.name for task in self._tasks]
            summary = self._gates.summary(partial(trainer.strategy.reduce, reduce_op="sum"))
            values |= summary.by_name(names)
            if warns:
                self._warn_once(summary.describe_collapse(names), self._collapse_remedy)
        return values

    def _warn_once(self, finding: str | None, remedy: str) -> None:
        """Warn of a finding, but only once for each remedy."""
        if finding and remedy not in self._warned:
            self._warned.add(remedy)
            log.warning("%s%s", finding, remedy)


def describe_constant_task(logits: Tensor, tasks: Sequence[Task]) -> str | None:
    """Describe the first task whose logits, in [N, L], are the same in all rows; None if there is none.

    This happens when all units of a tower are 0 in every row, so no gradient reaches them.
    """
    same = (logits.amax(-2) == logits.amin(-2)).reshape(-1, logits.shape[-1])  # [R, L]
    same = torch.stack([same[:, own].all(-1) for own in logit_columns(tasks)], dim=-1)  # [R, T]
    if logits.shape[-2] < 2 or not same.any():
        return None
    r, t = same.nonzero()[0].tolist()
    where = f" in replica {r}" if logits.ndim == 3 else ""
    return f"the predictions of {tasks[t].name}{where} are the same for all validation rows"


@torch.inference_mode()
def share_of_dead_units(objective: nn.Module, rows: Batch, precision: Precision) -> Tensor | None:
    """The share of ReLU units that are 0 in every one of the first rows, computed in a trainer's precision.

    None if there is no ReLU, and for replicas and ensembles, because hooks cannot see the units of one copy.
    """

    def has(kind: type[nn.Module]) -> bool:
        return any(isinstance(module, kind) for module in objective.modules())

    if has(Replicas) or not has(nn.ReLU):
        return None
    network: Any = objective.network
    first = take(rows, torch.arange(min(DEAD_UNIT_ROWS, len(rows.levels)), device=rows.levels.device))
    numbers = precision.convert_input(first.numbers)
    with precision.forward_context(), dead_units_recorded(network) as dead:
        if first.sparse is None:  # a custom network may take only levels and numbers
            network(first.levels, numbers)
        else:
            network(first.levels, numbers, first.sparse)
    return torch.cat([units.flatten() for units in dead.values()]).double().mean() if dead else None
