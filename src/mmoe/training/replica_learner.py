"""Train replicas side by side, each with its own metrics, best epoch, best weights and early stop.

R replicas.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor

from mmoe.balancing.strategies import Strategy
from mmoe.build import locate
from mmoe.checks.arguments import check_finite, check_integers
from mmoe.data.batch import Batch
from mmoe.errors import ArgumentError, UserError
from mmoe.models.replicas import Replicas
from mmoe.tasks import validation_metrics
from mmoe.training.checkpoint_callbacks import Best
from mmoe.training.epoch_outputs import LabelledLogits
from mmoe.training.epoch_results import EpochResults
from mmoe.training.learner import Learner
from mmoe.training.losses_over_processes import label_totals
from mmoe.training.objective import LossAndOutput, Objective, TaskLosses

SIGNS = {"max": 1, "min": -1}
# Settings of the callbacks `best` and `early_stopping` that are allowed with replicas.
REPLICA_BEST_KEYS = (
    "_target_", "monitor", "mode", "dirpath", "filename", "enable_version_counter", "verbose"
)  # fmt: skip
REPLICA_STOP_KEYS = (
    "_target_", "monitor", "mode", "patience", "min_delta", "check_on_train_epoch_end", "strict", "verbose"
)  # fmt: skip


class ReplicaLearner(Learner):
    """Train R objectives side by side, minimising the sum of their losses.

    Each replica trains as it would alone. Its weights are copied after every validation that improves its
    monitored metric. After `patience` validations without a better value the replica has stopped: later
    epochs do not count for it. Training ends when all replicas have stopped. Gradients are clipped per
    replica. There are no training metrics, because computing them would take longer than the training.

    Args:
        objectives: R objectives, each with its own initial weights.
        optimizer: builds one optimizer for all replicas from the stacked parameters.
        scheduler, interval, frequency, monitor, balance: see `Learner`.
        best_monitor: the validation metric that chooses the best epoch; by default `monitor`.
        best_mode: `max` if a larger value is better, else `min`; by default what `best_monitor` needs.
        stop_monitor: the validation metric that stops a replica early; by default `best_monitor`.
        stop_mode: the mode of `stop_monitor`; by default what `stop_monitor` needs.
        patience: validations without a gain before a replica stops; None: never. As in Lightning, 0 means 1.
        min_delta: for early stopping, smaller gains do not count.

    Raises:
        ArgumentError: a metric is not logged in validations, a mode is unknown, or the schedule follows a
            metric, which is impossible because all replicas share one learning rate.
    """

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
        best_mode: str | None = None,
        stop_monitor: str | None = None,
        stop_mode: str | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        balance: Sequence[Strategy] = (),
    ) -> None:
        super().__init__(objectives[0], optimizer, scheduler, interval, frequency, monitor, balance)
        if self.schedule.follows_validations:
            raise ArgumentError("scheduler: ReduceLROnPlateau follows one metric, and replicas have one each")
        self.objective = Replicas(objectives)
        self.num_replicas = len(objectives)
        self.results = EpochResults(objectives[0].tasks, self.num_replicas)
        self.best = copy.deepcopy(self.objective.stacked).requires_grad_(False)
        self.best_monitor = best_monitor or self.monitor
        self.stop_monitor = stop_monitor or self.best_monitor
        known = validation_metrics(objectives[0].tasks)
        for name, metric in (("best_monitor", self.best_monitor), ("stop_monitor", self.stop_monitor)):
            if metric not in known:
                raise ArgumentError(f"{name}={metric}: must be one of {', '.join(known)}")
        best_mode = best_mode or ("max" if known[self.best_monitor] else "min")
        stop_mode = stop_mode or ("max" if known[self.stop_monitor] else "min")
        for name, mode in (("best_mode", best_mode), ("stop_mode", stop_mode)):
            if mode not in SIGNS:
                raise ArgumentError(f"{name}={mode}: must be max or min")
        self.best_sign, self.stop_sign = SIGNS[best_mode], SIGNS[stop_mode]
        if patience is not None:
            check_integers(0, patience=patience)
        check_finite(0, min_delta=min_delta)
        self.patience = max(patience, 1) if patience is not None else torch.inf
        self.min_delta = min_delta
        count = len(objectives)
        worst = torch.full((count,), -torch.inf, dtype=torch.float64)
        self.register_buffer("best_value", worst)
        self.register_buffer("stop_value", worst.clone())
        self.register_buffer("best_epoch", torch.zeros(count, dtype=torch.long))  # from 1; 0 means none yet
        self.register_buffer("waited", torch.zeros(count, dtype=torch.long))  # validations since a gain

    @property
    def _inner_objective(self) -> Objective:
        return self.objective.stacked  # type: ignore[return-value]

    def _compute(self, batch: Batch, totals: Tensor | None = None) -> LossAndOutput | TaskLosses:
        """Losses, logits and gates of a batch, with R as first dimension; the batch's tensors may have it."""
        has_own_rows = batch.labels.ndim == 3
        rows = (batch.levels, batch.numbers, batch.labels, batch.known, batch.weights, batch.sparse)
        return self.objective(*rows, totals, own_rows=has_own_rows)  # type: ignore[no-any-return]

    def _step(self, batch: Batch, stage: str, number: int) -> Tensor:
        totals = label_totals(batch, self._inner_objective, self.trainer) if stage == "train" else None
        output = self._compute(batch, totals)
        losses, logits, gates = output[:3]
        labels, known = batch.labels, batch.known
        if stage == "train":  # one mean per batch shows where a replica diverged
            logits, labels, known = logits.mean(-2, keepdim=True), labels[..., :1, :], None
        outputs = LabelledLogits(logits.detach(), labels, known, batch.groups)
        self.results.add(stage, number, outputs, self.trainer)
        if stage == "val":
            self.statistics.add(gates)
        return self._training_loss(batch, output) if stage == "train" else losses

    def on_train_epoch_end(self) -> None:
        self._finish_epoch("train")  # checks that the logits are finite
        self._end_epoch()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.is_in_training:
            self._keep_best(
                self.best_sign * self.results.values[self.best_monitor],
                self.stop_sign * self.results.values[self.stop_monitor],
            )

    def _keep_best(self, value: Tensor, stop_value: Tensor) -> None:
        """Copy the weights of replicas whose value [R] is their best, and count validations without a gain.

        As in Lightning's callbacks, `min_delta` affects only early stopping.
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
    def chosen_epochs(self) -> Tensor:
        """[R], the epoch (from 1) of each replica's best weights; without validations, the last epoch."""
        now = torch.full_like(self.best_epoch, self.current_epoch)
        return torch.where(self.best_epoch > 0, self.best_epoch, now)

    def restore_best(self) -> None:
        """Give every replica its best weights. A replica without a best epoch keeps its last weights."""
        best = dict(self.best.named_parameters())
        with torch.no_grad():
            for name, weight in self.objective.parameters_by_name().items():  # type: ignore[operator]
                weight[self.best_epoch > 0] = best[name][self.best_epoch > 0]


def replica_callback_arguments(config: DictConfig) -> dict[str, Any]:
    """Turn the settings of the callbacks `best` and `early_stopping` into arguments of `ReplicaLearner`."""

    def setting(key: str, default: Any) -> Any:
        return OmegaConf.select(config, f"callbacks.{key}", default=default)

    for name, kind, known in (
        ("best", Best, REPLICA_BEST_KEYS),
        ("early_stopping", EarlyStopping, REPLICA_STOP_KEYS),
    ):
        node: Any = OmegaConf.select(config, f"callbacks.{name}") or {}
        for key in node:
            if key not in known:
                raise UserError(f"callbacks.{name}.{key}: replicas do not have it; leave it out")
        if node and locate(node._target_, f"callbacks.{name}") is not kind:
            raise UserError(
                f"callbacks.{name}._target_={node._target_}: must be {kind.__name__} for replicas"
            )
    chosen = {
        "best_monitor": setting("best.monitor", config.monitor),
        "best_mode": setting("best.mode", config.get("monitor_mode")),
    }
    if setting("early_stopping", None):  # the defaults are Lightning's
        chosen |= {
            "stop_monitor": setting("early_stopping.monitor", None),
            "stop_mode": setting("early_stopping.mode", "min"),
            "patience": setting("early_stopping.patience", 3),
            "min_delta": setting("early_stopping.min_delta", 0.0),
        }
    return chosen
