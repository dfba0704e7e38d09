"""The Lightning module that trains a network by an objective.

B batch, N rows, T tasks, L logits of all tasks, E experts, R replicas.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mmoe.balancing.balancer import Balancer
from mmoe.balancing.strategies import Strategy
from mmoe.checks.arguments import check_integers
from mmoe.data.batch import Batch
from mmoe.errors import ArgumentError, UserError
from mmoe.models.network import Output
from mmoe.tasks import default_monitor, logit_columns, predictions_of, validation_metrics
from mmoe.training.epoch_outputs import LabelledLogits
from mmoe.training.epoch_results import EpochResults
from mmoe.training.gradient_clipping import (
    clip_by_network,
    clip_by_value,
    clips_scaled_gradients,
    needs_own_clipping,
)
from mmoe.training.lightning_speedups import LightModule
from mmoe.training.losses_over_processes import label_totals, loss_factor_of_process
from mmoe.training.objective import LossAndOutput, Objective, TaskLosses
from mmoe.training.optimizers import build_optimizer
from mmoe.training.schedules import Schedule
from mmoe.training.throughput import Throughput
from mmoe.training.validation_statistics import ValidationStatistics


class Learner(LightModule):
    """Minimise an objective, and log the metrics of each task under its name.

    Args:
        objective: the network and its loss.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning-rate schedule from the optimizer; see `schedules.Schedule`.
        interval, frequency: say when the schedule advances; see `schedules.Schedule`.
        monitor: the validation metric that ReduceLROnPlateau follows and the progress bar shows; by default
            the first metric of the main task.
        balance: the strategy that balances the tasks, one for each replica; empty: the objective's own loss.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        batch: a `Batch` of B rows; output: logits [B, L] and gates [B, T, E].
    """

    num_replicas: int | None = None  # networks that are trained side by side; None for one network

    def __init__(
        self,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        interval: str | None = None,
        frequency: int = 1,
        monitor: str | None = None,
        balance: Sequence[Strategy] = (),
    ) -> None:
        super().__init__()
        if interval not in (None, "step", "epoch"):
            raise ArgumentError(f"interval={interval}: must be step or epoch")
        check_integers(1, frequency=frequency)
        self.objective: nn.Module = objective
        self.results = EpochResults(objective.tasks)
        self.statistics = ValidationStatistics(objective)
        self.monitor = monitor or default_monitor(objective.tasks)
        self._optimizer = optimizer
        metrics = validation_metrics(objective.tasks)
        self.schedule = Schedule(scheduler, interval, frequency, self.monitor, metrics)
        self.history: list[tuple[int, int, dict[str, Tensor]]] = []  # epoch, step, values of each validation
        self.test_gates: list[Tensor] = []  # gates of each test batch
        self.throughput = Throughput()
        self._tasks = objective.tasks
        self.balancer: Balancer | None = None
        if bool(balance) != getattr(objective, "by_task", False):
            raise ArgumentError(
                "objective.by_task: must be true with a balancing strategy, and false without"
            )
        if balance:
            names, columns = [task.name for task in self._tasks], logit_columns(self._tasks)
            self.balancer = Balancer(balance, objective.network, columns, names)
        self._train_batch: Batch  # the last one, if the balancer follows steps
        self._first_val_batch: Batch
        self._rng_states: list[Tensor] = []  # from a checkpoint
        self._should_stop = False

    @property
    def _inner_objective(self) -> Objective:
        """The objective; for replicas, the one that they share, whose parameters are stacked."""
        return self.objective  # type: ignore[return-value]

    @property
    def network(self) -> nn.Module:
        """The network; for replicas, the one that they share, whose parameters are stacked."""
        return self._inner_objective.network

    @property
    def has_replicas(self) -> bool:
        """Whether several networks are trained side by side."""
        return self.num_replicas is not None

    def configure_optimizers(self) -> Any:
        learned = self._start_balancer() if self.balancer else ()
        may_fuse = not clips_scaled_gradients(self._trainer)
        optimizer = build_optimizer(self._optimizer, self.objective, learned, may_fuse)
        return self.schedule.configure(optimizer, self._trainer)

    def _start_balancer(self) -> list[nn.Parameter]:
        assert self.balancer is not None
        has_others = self.trainer.world_size > 1
        reduce = partial(self.trainer.strategy.reduce, reduce_op="mean") if has_others else None
        named = {name.removeprefix("stacked."): p for name, p in self.objective.named_parameters()}
        return self.balancer.start(named, reduce)

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        if self.balancer and self.balancer.aggregates:
            self.balancer.backward(1 / self.trainer.accumulate_grad_batches)
        else:
            super().backward(loss, *arguments, **options)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        if self.balancer and self.balancer.follows_steps:
            batch = self._train_batch
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                losses = self._compute(batch, label_totals(batch, self._inner_objective, self.trainer))[0]
            weight = loss_factor_of_process(batch, self.trainer)
            self.balancer.follow_step(losses if weight is None else losses * weight)

    def check_optimizer(self, trainer: pl.Trainer | None = None) -> None:
        """Raise UserError before training if the optimizer or the schedule cannot work in it."""
        may_fuse = not clips_scaled_gradients(trainer)
        optimizer = build_optimizer(self._optimizer, self.objective, may_fuse=may_fuse)
        if optimizer.defaults.get("fused") and not may_fuse:
            rule = "cannot be combined with trainer.precision=16-mixed and gradient clipping; leave it out"
            raise UserError(f"learner.optimizer.fused=true: {rule}")
        self.schedule.configure(optimizer, None)

    def forward(self, batch: Batch) -> Output:
        output = self._compute(batch)
        return Output(output.logits, output.gates)

    def _compute(self, batch: Batch, totals: Tensor | None = None) -> LossAndOutput | TaskLosses:
        """Apply the objective to the fields of the batch that it takes; see `Objective` for `totals`."""
        return self.objective(  # type: ignore[no-any-return]
            batch.levels, batch.numbers, batch.labels, batch.known, batch.weights, batch.sparse, totals
        )

    def _step(self, batch: Batch, stage: str, number: int) -> Tensor:
        """Compute the loss of the epoch's batch `number`, and keep its logits for the metrics.

        The loss is a scalar, or [R] for replicas.
        """
        totals = label_totals(batch, self._inner_objective, self.trainer) if stage == "train" else None
        output = self._compute(batch, totals)
        loss, logits, gates = output[:3]
        outputs = LabelledLogits(logits.detach(), batch.labels, batch.known, batch.groups)
        self.results.add(stage, number, outputs, self.trainer)
        if stage == "val":
            self.statistics.add(gates)
        if stage == "test":
            if number == 0 or stage in self.results.running:
                self.test_gates.clear()
            if stage not in self.results.running:
                self.test_gates.append(gates.cpu())
        return self._training_loss(batch, output) if stage == "train" else loss

    def _training_loss(self, batch: Batch, output: LossAndOutput | TaskLosses) -> Tensor:
        """The loss of a training batch; if tasks are balanced, times the weight of this process."""
        if self.balancer is None:
            return output[0]
        assert isinstance(output, TaskLosses)
        losses, penalty = output.losses, output.penalty
        weight = loss_factor_of_process(batch, self.trainer)
        if weight is not None:
            losses, penalty = losses * weight, penalty * weight
        if self.balancer.follows_steps:
            self._train_batch = batch
        return self.balancer.loss(losses, penalty)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.throughput.add(batch.labels.shape[-2])
        loss = self._step(batch, "train", batch_idx)
        # log() takes longer than the step, so it is called only when its value is written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", loss.detach().mean(), prog_bar=True)
        loss = loss.sum() if self.has_replicas else loss
        weight = None if self.balancer else loss_factor_of_process(batch, self.trainer)
        return loss if weight is None else loss * weight

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val", batch_idx)
        if batch_idx == 0:
            self._first_val_batch = batch

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test", batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predictions [B, L] in float64: probabilities, or values in the label's unit."""
        return predictions_of(self._tasks, self._compute(batch).logits)

    @torch.inference_mode()
    def predict(self, batches: Iterable[Batch]) -> Tensor:
        """Predict all rows.

        Logits are computed in the trainer's precision; the predictions [N, L] are float64 on the CPU.
        """
        self.eval()
        precision = self.trainer.precision_plugin
        parts = []
        for batch in batches:
            rows = batch.map(lambda tensor: precision.convert_input(tensor.to(self.device)))
            with precision.forward_context():
                parts.append(self._compute(rows).logits.cpu())
        return predictions_of(self._tasks, torch.cat(parts, dim=-2))

    def on_validation_start(self) -> None:
        self.throughput.pause(self.device)

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train", self._finish_epoch("train"))
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self.balancer:
            self.balancer.end_epoch()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and statistics of gates, ReLUs and balancing."""
        outputs = self._finish_epoch("val")
        statistics = self.balancer.take_statistics() if self.balancer and self.is_in_training else {}
        statistics |= self.statistics.finish(self.objective, self._first_val_batch, outputs, self.trainer)
        self._log_metrics("val", outputs, statistics)
        if self.is_in_training:
            values = {k: value for k, value in self.results.values.items() if k.startswith("val/")}
            values = {k: value.cpu() for k, value in (values | statistics).items()}
            self.history.append((self.current_epoch + 1, self.global_step, values))

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self._finish_epoch("test"))

    def _finish_epoch(self, stage: str) -> LabelledLogits | None:
        self.throughput.pause(self.device)
        return self.results.finish(stage, self.trainer)

    def _log_metrics(
        self, stage: str, outputs: LabelledLogits | None, statistics: dict[str, Tensor] | None = None
    ) -> None:
        values = self.results.compute(stage, outputs) | (statistics or {})
        self.log_epoch({name: value.mean() for name, value in values.items()}, self.monitor)

    @property
    def is_in_training(self) -> bool:
        """Whether training is running; Lightning's sanity check before it does not count."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: random states, the epoch's logits so far, and the history.

        Raises:
            UserError: a weight is not finite. The previous checkpoint then stays the newest.
        """
        self.results.check_weights(self.objective.parameters(), self.trainer)
        rng_states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            rng_states += torch.cuda.get_rng_state_all()
        checkpoint["mmoe"] = {
            "should_stop": self.trainer.should_stop,
            "generators": rng_states,
            "history": self.history,
            "balancer": self.balancer and self.balancer.state_dict(),
            **self.results.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint["mmoe"]
        self._rng_states, self._should_stop = stored["generators"], stored["should_stop"]
        self.results.load_state_dict(stored)
        self.history = list(stored["history"])
        if self.balancer and self.is_in_training:
            self.balancer.load_state_dict(stored["balancer"])

    def on_train_start(self) -> None:
        """Restore the checkpoint's state, in the last hook before the first random number is drawn."""
        self.trainer.should_stop |= self._should_stop  # Lightning forgets an early stop
        self.results.to(self.device)
        rank = self.trainer.global_rank
        if rank:  # the checkpoint holds the first process's outputs; each process needs its own dropout
            self.results.forget_outputs()
            torch.manual_seed(torch.initial_seed() + 1_000_003 * rank + self.global_step)
        elif self._rng_states:
            torch.set_rng_state(self._rng_states[0].cpu())
            for device, state in enumerate(self._rng_states[1 : 1 + torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state.cpu(), device)
            self._rng_states = []

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradients of each replica, and of each member of an ensemble, by its own norm.

        The gradients of a balancing strategy's parameters do not count.
        """
        if not gradient_clip_val:
            return
        learns_weights = self.balancer is not None and bool(self.balancer.learned)
        if not (learns_weights or self.has_replicas or needs_own_clipping(self.objective)):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            clip_by_value(self.objective, gradient_clip_val)
        else:
            clip_by_network(self.objective, gradient_clip_val, self.has_replicas)
