"""The results of an epoch: its metrics, and the logits or running statistics that they come from.

N rows, L logits of all tasks, R replicas.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mmoe.errors import UserError
from mmoe.tasks import Task, logit_names
from mmoe.training.divergence import Diverged, find_divergence
from mmoe.training.epoch_outputs import EpochOutputs, LabelledLogits
from mmoe.training.running_metrics import RunningMetrics
from mmoe.training.task_metrics import TaskMetrics


class EpochResults:
    """Collect the outputs of a stage's batches; at its end, check the logits and compute the metrics.

    Attributes:
        values: `{stage}/{task}/{metric}` of each stage's last epoch: scalars, or [R] for replicas.
        num_rows: the number of rows in the last epoch of `val` and `test`, in all processes. For `train`,
            only outputs that are still kept are counted.
        logits: logits [N, L] or [R, N, L] of this process, by stage, from the last `validate` or `test`.
        running: statistics in place of logits, if a stage's last epoch had over `MAX_ROWS` rows.
    """

    def __init__(self, tasks: Sequence[Task], num_replicas: int | None = None) -> None:
        self.values: dict[str, Tensor] = {}
        self.num_rows: dict[str, int] = {}
        self.logits: dict[str, Tensor] = {}
        self.running: dict[str, RunningMetrics] = {}
        self._tasks, self._num_replicas = list(tasks), num_replicas
        self._logit_names = logit_names(tasks)
        self._metrics = TaskMetrics(tasks)
        self._train_metrics = TaskMetrics(tasks, is_bounded=True)  # sorting the rows takes long
        self._outputs = EpochOutputs()
        # A divergence in training outputs of this epoch that were dropped, and the bad logits [L] or [R, L].
        self._divergence: tuple[Diverged, Tensor] | None = None

    def add(self, stage: str, number: int, outputs: LabelledLogits, trainer: pl.Trainer) -> None:
        """Add the outputs of the epoch's batch `number`.

        If there are too many rows, only the last training rows are kept. Validation and test rows are
        replaced by statistics.
        """
        if number == 0:
            self.running.pop(stage, None)
        if number == 0 and stage == "train":
            self._divergence = None
        if self._outputs.is_full(stage, number):
            if stage == "train":
                self._drop_old_outputs(trainer)
            else:
                self._add_to_running(stage, trainer)
        self._outputs.add(stage, number, outputs)

    def _drop_old_outputs(self, trainer: pl.Trainer) -> None:
        """Forget the older half of the training outputs, after a check of their logits."""
        first, batches = self._outputs.num_taken("train"), self._outputs.drop_half("train")
        bad = torch.stack([~logits.isfinite().all(-2) for logits in batches]).any(0)
        if bad.any() and self._divergence is None:  # raised at the end of the epoch, by all processes
            later = len(self._outputs.logits("train"))
            error = find_divergence(
                trainer, self._logit_names, batches, bad, num_before=first, num_after=later
            )
            self._divergence = error, bad

    def _add_to_running(self, stage: str, trainer: pl.Trainer) -> None:
        """Replace the kept outputs with their statistics."""
        outputs = self._outputs.take(stage, trainer.strategy.root_device, trainer.world_size == 1)
        if stage not in self.running:
            self.running[stage] = RunningMetrics(self._tasks, self._num_replicas)
        if outputs is not None:
            self.running[stage].add(outputs, keeps_sample=trainer.state.fn != "fit")

    def finish(self, stage: str, trainer: pl.Trainer) -> LabelledLogits | None:
        """Collect the epoch's outputs, and check the logits. None: `running` has the statistics.

        Raises:
            UserError: a logit is not finite, in this process or another one.
        """
        device, reduce = trainer.strategy.root_device, trainer.strategy.reduce
        is_running = torch.tensor(float(stage in self.running), device=device)
        if reduce(is_running, reduce_op="sum"):
            self._finish_running(stage, trainer)
            return None
        train_batches, first = self._outputs.logits("train"), self._outputs.num_taken("train")
        # Logits that were moved to the CPU stay there unless processes must exchange them.
        outputs = self._outputs.take(stage, device, trainer.world_size == 1)
        assert outputs is not None
        count = torch.tensor(outputs.logits.shape[-2], device=device)
        self.num_rows[stage] = int(reduce(count, reduce_op="sum"))
        bad = ~outputs.logits.isfinite().all(-2)
        error, dropped = self._divergence or (None, bad)
        # Every process must know of the divergence, because only the first one prints the error.
        bad = reduce((bad | dropped).to(device, torch.int32), reduce_op="sum").bool()
        if bad.any():
            if trainer.state.fn != "fit":
                raise UserError(f"the {stage} rows have logits that are not finite")
            raise error or find_divergence(trainer, self._logit_names, train_batches, bad, num_before=first)
        if trainer.state.fn != "fit":
            self.logits[stage] = outputs.logits.cpu()
        return outputs

    def _finish_running(self, stage: str, trainer: pl.Trainer) -> None:
        """Add the last outputs of the epoch to `running`, and check that no process has a bad logit."""
        self._add_to_running(stage, trainer)
        running, device, reduce = self.running[stage], trainer.strategy.root_device, trainer.strategy.reduce
        self.num_rows[stage] = int(reduce(torch.tensor(running.num_rows, device=device), reduce_op="sum"))
        bad = reduce(running.bad.to(device, torch.int32), reduce_op="sum").bool()
        if bad.any() and trainer.state.fn != "fit":
            raise UserError(f"the {stage} rows have logits that are not finite")
        if bad.any():
            raise self._find_divergence(trainer, bad)

    def compute(self, stage: str, outputs: LabelledLogits | None) -> dict[str, Tensor]:
        """Compute the metrics of what `finish` has returned, add them to `values`, and return them."""
        if outputs is None:
            values = self.running[stage].compute(stage)
        else:
            metrics = self._train_metrics if stage == "train" else self._metrics
            metrics.to(outputs.logits.device)
            if self._num_replicas is None:
                values = metrics(stage, *outputs)
            else:
                found = [metrics(stage, *own) for own in outputs.by_replica()]
                values = {name: torch.stack([one[name] for one in found]) for name in found[0]}
        self.values |= values
        return values

    def check_weights(self, weights: Iterable[Tensor], trainer: pl.Trainer) -> None:
        """Raise UserError if a weight [...], or [R, ...] for replicas, is not finite."""
        if self._num_replicas is None:
            # In parts, because `isfinite` needs several times the memory of a table of vectors.
            parts = (part for weight in weights for part in torch.split(weight.flatten(), 2**20))
            is_bad = torch.tensor(not all(bool(part.isfinite().all()) for part in parts))
        else:
            is_bad = ~torch.stack([weight.isfinite().flatten(1).all(1) for weight in weights]).all(0)  # [R]
        if is_bad.any():
            bad = is_bad[..., None].expand(*is_bad.shape, len(self._logit_names))  # not traced to a task
            raise self._find_divergence(trainer, bad, is_weight=True)

    def _find_divergence(self, trainer: pl.Trainer, bad: Tensor, is_weight: bool = False) -> Diverged:
        """The error of this epoch. A divergence in dropped training outputs came first."""
        if self._divergence is not None:
            return self._divergence[0]
        batches, first = self._outputs.logits("train"), self._outputs.num_taken("train")
        return find_divergence(
            trainer, self._logit_names, batches, bad, is_weight=is_weight, num_before=first
        )

    def to(self, device: torch.device) -> None:
        """Move the outputs that are kept."""
        self._outputs.to(device)

    def forget_values(self) -> None:
        """Forget the metrics of earlier epochs."""
        self.values = {}

    def forget_outputs(self) -> None:
        """Forget the outputs of unfinished epochs."""
        self._outputs, self.running = EpochOutputs(), {}

    def state_dict(self) -> dict[str, Any]:
        """The state in the middle of an epoch, for a checkpoint."""
        return {
            "outputs": self._outputs.state_dict(),
            "running": {stage: one.state_dict() for stage, one in self.running.items()},
            "values": self.values,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self._outputs.load_state_dict(state["outputs"])
        for stage, stored in state["running"].items():
            self.running[stage] = RunningMetrics(self._tasks, self._num_replicas)
            self.running[stage].load_state_dict(stored)
        self.values = dict(state["values"])
