"""How replicas are trained: each with its own metrics, best epoch, best weights and early stop.

R replicas, N rows, T tasks.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmoe.arguments import check_finite, check_integers
from mmoe.data.encode import Rows
from mmoe.errors import UserError
from mmoe.models.replicas import Replicas
from mmoe.training.learner import Learner
from mmoe.training.objective import Objective, Outcome
from mmoe.training.tasks import validation_metrics


class ReplicaLearner(Learner):
    """Train R objectives side by side, on the same batches, by the sum of their losses.

    After each validation a replica whose monitored metric is the best it had gets a copy of its weights. One
    that has not improved for `patience` validations is done: what it does later no longer counts, and
    training ends when all are done. Gradients are clipped for each replica apart. So each is the run that it
    would have been alone. Metrics of the training rows are left out: for many replicas they would cost more
    than the training.

    Args:
        objectives: the R objectives, initialised one by one.
        optimizer: from the stacked parameters to one optimizer for all.
        scheduler: see `Learner`, as for the next three.
        interval, frequency, monitor: of the schedule.
        best_monitor: the validation metric that chooses the best epoch; None is `monitor`.
        best_mode: `max` where larger is better, or `min`.
        stop_monitor: the validation metric that stops a replica early; None is `best_monitor`.
        stop_mode: its direction.
        patience: validations without a better value of it; None never stops. 0 is 1, as for Lightning.
        min_delta: a smaller gain is none.

    Raises:
        UserError: a metric is none of the validation rows, a mode is neither, or the schedule follows a
            metric, for all replicas have one learning rate.
    """

    stacked_dims = 1
    best_value: Tensor
    best_epoch: Tensor
    stop_value: Tensor
    waited: Tensor

    def __init__(
        self,
        objectives: Sequence[Objective],
        optimizer: Any,
        scheduler: Any = None,
        interval: str | None = None,
        frequency: int = 1,
        monitor: str | None = None,
        best_monitor: str | None = None,
        best_mode: str = "max",
        stop_monitor: str | None = None,
        stop_mode: str | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(objectives[0], optimizer, scheduler, interval, frequency, monitor)
        if self.follows_validations:
            raise UserError("scheduler: ReduceLROnPlateau follows one metric, and replicas have one each")
        self.objective = Replicas(objectives)
        self.best = copy.deepcopy(self.objective.stacked).requires_grad_(False)
        self.best_monitor = best_monitor or self.monitor
        self.stop_monitor = stop_monitor or self.best_monitor
        self.best_sign = _sign(best_mode)
        self.stop_sign = self.best_sign if stop_mode is None else _sign(stop_mode)
        known = validation_metrics(objectives[0].tasks)
        for name, metric in (("best_monitor", self.best_monitor), ("stop_monitor", self.stop_monitor)):
            if metric not in known:
                raise UserError(f"{name}={metric}: must be one of {', '.join(known)}")
        if patience is not None:
            check_integers(0, patience=patience)
        check_finite(0, min_delta=min_delta)
        self.patience = max(patience, 1) if patience is not None else torch.inf
        self.min_delta = min_delta
        count = len(objectives)
        worst = torch.full((count,), -torch.inf, dtype=torch.float64)
        self.register_buffer("best_value", worst)
        self.register_buffer("stop_value", worst.clone())
        self.register_buffer("best_epoch", torch.zeros(count, dtype=torch.long))  # from 1; 0: none yet
        self.register_buffer("waited", torch.zeros(count, dtype=torch.long))

    def _step(self, batch: Rows, stage: str, number: int) -> Tensor:
        losses, logits, gates = self._apply_to(batch)
        labels = batch.labels
        if stage == "train":  # enough to find the batch in which a replica diverged
            logits, labels = logits.mean(-2, keepdim=True), labels[..., :1, :]
        self._keep(stage, number, logits.detach(), labels)
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
        if self.is_in_training:
            self._keep_the_best(
                self.best_sign * self.values[self.best_monitor],
                self.stop_sign * self.values[self.stop_monitor],
            )

    def _bad_weights(self) -> Tensor:
        """Of each replica and task, [R, T]."""
        finite = [weight.isfinite().flatten(1).all(1) for weight in self.objective.parameters()]
        return ~torch.stack(finite).all(0)[:, None].expand(-1, len(self._task_names))

    def _dead_units(self) -> dict[str, Tensor]:
        """Nothing: a unit of one replica cannot be looked at alone."""
        return {}

    def _keep_the_best(self, value: Tensor, stop_value: Tensor) -> None:
        """Copy the weights of replicas whose value [R] is their largest; stop those whose other one stays.

        As Lightning's callbacks do it, a gain below `min_delta` is no gain for the stop alone.
        """
        running = self.waited < self.patience
        better = running & (value > self.best_value)
        self.best_value = torch.where(better, value, self.best_value)
        self.best_epoch = torch.where(better, self.current_epoch + 1, self.best_epoch)
        gained = running & (stop_value - self.min_delta > self.stop_value)
        self.stop_value = torch.where(gained, stop_value, self.stop_value)
        self.waited = torch.where(gained, 0, self.waited + 1)
        now = self.objective.parameters_by_name()  # type: ignore[operator]
        for name, kept in self.best.named_parameters():
            kept[better] = now[name].detach()[better]
        if not (self.waited < self.patience).any():
            self.trainer.should_stop = True

    @property
    def best_epochs(self) -> Tensor:
        """The epoch, from 1, of each replica's best weights, [R]; the last where nothing was validated."""
        now = torch.full_like(self.best_epoch, self.current_epoch)
        return torch.where(self.best_epoch > 0, self.best_epoch, now)

    def take_the_best(self) -> None:
        """Give every replica its best weights; one that has none keeps those that it has."""
        best = dict(self.best.named_parameters())
        with torch.no_grad():
            for name, weight in self.objective.parameters_by_name().items():  # type: ignore[operator]
                weight[self.best_epoch > 0] = best[name][self.best_epoch > 0]


def _sign(mode: str) -> int:
    if mode not in ("max", "min"):
        raise UserError(f"mode={mode}: must be max or min")
    return 1 if mode == "max" else -1
