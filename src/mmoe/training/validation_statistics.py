"""Statistics of gates and ReLUs on the validation rows, and warnings of gates and tasks that have failed.

B batch, T tasks, E experts.
"""

import logging
from functools import partial

import pytorch_lightning as pl
from torch import Tensor, nn

from mmoe.data.batch import Batch
from mmoe.models.mmoe import MMoE
from mmoe.training.dead_units import describe_constant_task, share_of_dead_units
from mmoe.training.epoch_outputs import Outputs
from mmoe.training.gate_statistics import GateStatistics
from mmoe.training.objective import Objective

log = logging.getLogger(__name__)

COLLAPSE_REMEDY = (
    "; a larger model.gate_temperature (such as 10) or model.gate_dropout=0.1 makes it use other experts too"
)
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
        self, objective: nn.Module, first_rows: Batch, outputs: Outputs | None, trainer: pl.Trainer
    ) -> dict[str, Tensor]:
        """Compute all statistics by name. During training, warn of a collapsed gate or a dead task.

        `first_rows` are the first validation rows, and `outputs` those of all rows, if they are kept.
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
