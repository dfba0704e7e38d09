"""How replicas are trained: each with its own metrics, best epoch, best weights and early stop.

R replicas, N rows, T tasks.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmoe.data.encode import Rows
from mmoe.learner import Learner
from mmoe.models.replicas import Replicas
from mmoe.objective import Objective, Outcome


class ReplicaLearner(Learner):
    """Train R objectives side by side, on the same batches, by the sum of their losses.

    After each validation a replica whose monitored metric is the best it had gets a copy of its weights. One
    that has not improved for `patience` epochs is done: what it does later no longer counts, and training
    ends when all are done. So each is the run that it would have been alone. Metrics of the training rows
    are left out: for many replicas they would cost more than the training.

    Args:
        objectives: the R objectives, initialised one by one.
        optimizer: from the stacked parameters to one optimizer for all.
        scheduler: see `Learner`.
        monitor: name of a validation metric.
        mode: `max` where larger is better, or `min`.
        patience: epochs without a better value; None never stops.
    """

    best_value: Tensor
    best_epoch: Tensor
    waited: Tensor

    def __init__(
        self,
        objectives: Sequence[Objective],
        optimizer: Any,
        scheduler: Any = None,
        monitor: str | None = None,
        mode: str = "max",
        patience: int | None = None,
    ) -> None:
        super().__init__(objectives[0], optimizer, scheduler)
        self.objective = Replicas(objectives)
        self.best = copy.deepcopy(self.objective.stacked).requires_grad_(False)
        self.monitor = monitor or self.monitor
        self.sign = 1 if mode == "max" else -1
        self.patience = patience
        count = len(objectives)
        self.register_buffer("best_value", torch.full((count,), -torch.inf, dtype=torch.float64))
        self.register_buffer("best_epoch", torch.zeros(count, dtype=torch.long))  # from 1; 0: none yet
        self.register_buffer("waited", torch.zeros(count, dtype=torch.long))

    def _step(self, batch: Rows, stage: str) -> Tensor:
        losses, logits, gates = self._apply_to(batch)
        labels = batch.labels
        if stage == "train":  # enough to find the batch in which a replica diverged
            logits, labels = logits.mean(-2, keepdim=True), labels[..., :1, :]
        self._outputs[stage].append((logits.detach(), labels))
        if stage == "val" and gates.shape[-1]:
            self.gates.update(gates)
        return losses.sum()

    def _apply_to(self, batch: Rows) -> Outcome:
        """Losses [R], logits [R, B, T] and gates [R, B, T, E] of a batch.

        All replicas share it, or it has R in front.
        """
        own_rows = batch.labels.ndim == 3
        return self.objective(*batch, own_rows=own_rows)  # type: ignore[no-any-return]

    def _finish(self, stage: str) -> None:
        logits, labels = self._rows(stage)
        every = [self.metrics(stage, x, y) for x, y in zip(logits, labels.expand_as(logits), strict=True)]
        for name in every[0]:
            self.values[name] = torch.stack([metrics[name] for metrics in every])  # [R]
            self.log(name, self.values[name].mean(), prog_bar=name == self.monitor)

    def on_train_epoch_end(self) -> None:
        self._rows("train")  # which checks them; for their metrics see the class

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit":
            self._keep_the_best(self.sign * self.values[self.monitor])

    def _bad_weights(self) -> Tensor:
        """Of each replica and task, [R, T]."""
        finite = [weight.isfinite().flatten(1).all(1) for weight in self.objective.parameters()]
        return ~torch.stack(finite).all(0)[:, None].expand(-1, len(self._task_names))

    def _dead_units(self) -> dict[str, Tensor]:
        """Nothing: a unit of one replica cannot be looked at alone."""
        return {}

    def _keep_the_best(self, value: Tensor) -> None:
        """Copy the weights of replicas whose value [R] is their largest; count the epochs of the others."""
        running = self.waited < (self.patience or torch.inf)
        better = running & (value > self.best_value)
        self.best_value = torch.where(better, value, self.best_value)
        self.best_epoch = torch.where(better, self.current_epoch + 1, self.best_epoch)
        self.waited = torch.where(better, 0, self.waited + 1)
        now = self.objective.parameters_by_name()  # type: ignore[operator]
        for name, kept in self.best.named_parameters():
            kept[better] = now[name].detach()[better]
        if not (self.waited < (self.patience or torch.inf)).any():
            self.trainer.should_stop = True

    def take_the_best(self) -> None:
        """Give every replica its best weights; before the first validation those that it has are the best."""
        if self.best_epoch.any():
            self.objective.stacked.load_state_dict(self.best.state_dict())  # type: ignore[union-attr]
