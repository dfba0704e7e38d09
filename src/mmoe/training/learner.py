"""The Lightning module that trains a network by an objective.

B batch, N rows, T tasks, L logits of all tasks, E experts.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.balancing.balancer import Balancer
from mmoe.balancing.strategies import Strategy
from mmoe.data.batch import Batch
from mmoe.errors import ArgumentError, UserError, check_integers
from mmoe.models.ensemble import Ensemble
from mmoe.models.inputs import Inputs
from mmoe.models.mmoe import MMoE
from mmoe.models.network import Output
from mmoe.models.replicas import clip_grad_norm_per_copy
from mmoe.tasks import default_monitor, logit_columns, logit_names, validation_metrics
from mmoe.training.divergence import Diverged, find_divergence
from mmoe.training.epoch_outputs import EpochOutputs, Outputs
from mmoe.training.gate_statistics import GateStatistics, dead_units, describe_constant_task
from mmoe.training.lightning_speedups import LightModule
from mmoe.training.metrics import TaskMetrics
from mmoe.training.objective import LossAndOutput, Objective, TaskLosses, loss_weights
from mmoe.training.optimizers import build_optimizer
from mmoe.training.running_metrics import RunningMetrics
from mmoe.training.schedules import Schedule
from mmoe.training.throughput import Throughput

log = logging.getLogger(__name__)

DEAD_UNIT_ROWS = 2048  # a ReLU unit that is 0 in this many validation rows counts as dead
COLLAPSE_REMEDY = (
    "; a larger model.gate_temperature (such as 10) or model.gate_dropout=0.1 makes it use other experts too"
)
DEAD_TOWER_REMEDY = (
    "; all units of its tower may be 0; try model.activation=gelu or a lower learner.optimizer.lr"
)


class Learner(LightModule):
    """Minimise an objective, and log the metrics of each task under its name.

    Args:
        objective: the network and its loss.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning-rate schedule from the optimizer; see `schedules.Schedule`.
        interval, frequency: say when the schedule advances; see `schedules.Schedule`.
        monitor: the validation metric that ReduceLROnPlateau follows and the progress bar shows; by default
            the first metric of the main task.
        balance: a strategy that balances the tasks; none: the loss of the objective. Replicas have one each.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        batch: a `Batch` of B rows; output: logits [B, L] and gates [B, T, E].
    """

    stacked_dims = 0  # extra leading dimensions of each parameter; 1 for replicas

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
        self.metrics = TaskMetrics(objective.tasks)
        self.train_metrics = TaskMetrics(objective.tasks, is_binned=True)  # sorting the rows takes long
        self.gates = GateStatistics()
        self.monitor = monitor or default_monitor(objective.tasks)
        self._optimizer = optimizer
        metrics = validation_metrics(objective.tasks)
        self.schedule = Schedule(scheduler, interval, frequency, self.monitor, metrics)
        self.metric_values: dict[str, Tensor] = {}  # `{stage}/{task}/{metric}` of each stage's last epoch
        self.num_rows: dict[str, int] = {}  # rows in each stage's last epoch, in all processes
        self.history: list[tuple[int, int, dict[str, Tensor]]] = []  # epoch, step, values of each validation
        # Logits [N, L] of this process, by stage, from the last evaluation outside training.
        self.final_logits: dict[str, Tensor] = {}
        # Statistics in place of logits, if a stage's last epoch had over `epoch_outputs.MAX_ROWS` rows.
        self.running: dict[str, RunningMetrics] = {}
        # A divergence in training outputs of this epoch that were dropped, and the bad logits [L] or [R, L].
        self._divergence: tuple[Diverged, Tensor] | None = None
        self.test_gates: list[Tensor] = []  # gates of each test batch
        self.throughput = Throughput()
        self._outputs = EpochOutputs()
        self._task_names = [task.name for task in objective.tasks]
        self._logit_names = logit_names(objective.tasks)
        self._collapse_remedy = COLLAPSE_REMEDY if isinstance(objective.network.model, MMoE) else ""
        self._warned: set[str] = set()
        self.balancer: Balancer | None = None
        if balance:
            columns = logit_columns(objective.tasks)
            self.balancer = Balancer(balance, objective.network, columns, self._task_names)
            objective.by_task = True
        self._train_batch: Batch  # the last one, if the balancer follows steps
        self._first_val_batch: Batch
        self._rng_states: list[Tensor] = []  # from a checkpoint
        self._should_stop = False

    @property
    def _first_objective(self) -> Objective:
        """The objective, or that of the first replica without its weights."""
        return self.objective  # type: ignore[return-value]

    @property
    def num_replicas(self) -> int | None:
        """The number of networks that are trained side by side; None for one network."""
        return None

    @property
    def has_replicas(self) -> bool:
        """Whether several networks are trained side by side."""
        return self.num_replicas is not None

    def configure_optimizers(self) -> Any:
        learned = self._start_balancer() if self.balancer else ()
        optimizer = build_optimizer(self._optimizer, self.objective, learned)
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
                losses = self._compute(batch, self._totals(batch, "train"))[0]
            weight = self._weight_of_process(batch)
            self.balancer.follow_step(losses if weight is None else losses * weight)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients, without the profiler's context that torch's method opens."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def check_optimizer(self) -> None:
        """Raise UserError before training if the optimizer or the schedule refuses its arguments."""
        optimizer = build_optimizer(self._optimizer, self.objective)
        self.schedule.configure(optimizer, None)

    def encode_rows(self, rows: Batch, batch_size: int) -> Batch:
        """Add `sparse` to the training rows if the network computes with it. `DataModule` calls this once."""
        inputs = [module for module in self.objective.modules() if isinstance(module, Inputs)]
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        return inputs[0].encode_rows(rows, batch_size) if inputs and on_cpu else rows

    def forward(self, batch: Batch) -> Output:
        output = self._compute(batch)
        return Output(output.logits, output.gates)

    def _compute(self, batch: Batch, totals: Tensor | None = None) -> LossAndOutput | TaskLosses:
        """Apply the objective; `totals` are its argument."""
        return self.objective(*batch[:6], totals)  # type: ignore[no-any-return]

    def _step(self, batch: Batch, stage: str, number: int) -> Tensor:
        """Compute the loss of the epoch's batch `number`, and keep its logits for the metrics.

        The loss is a scalar, or [R] for replicas.
        """
        output = self._compute(batch, self._totals(batch, stage))
        loss, logits, gates = output[:3]
        outputs = Outputs(logits.detach(), batch.labels, batch.known, batch.groups)
        self._keep(stage, number, outputs)
        if stage == "val" and gates.shape[-1]:
            self.gates.update(gates)
        if stage == "test":
            self.test_gates = [] if number == 0 else self.test_gates
            if stage not in self.running:
                self.test_gates.append(gates.cpu())
        return self._training_loss(batch, output) if stage == "train" else loss

    def _training_loss(self, batch: Batch, output: LossAndOutput | TaskLosses) -> Tensor:
        """The loss of a training batch; if tasks are balanced, times the weight of this process."""
        if self.balancer is None:
            return output[0]
        assert isinstance(output, TaskLosses)
        losses, penalty = output.losses, output.penalty
        weight = self._weight_of_process(batch)
        if weight is not None:
            losses, penalty = losses * weight, penalty * weight
        if self.balancer.follows_steps:
            self._train_batch = batch
        return self.balancer.loss(losses, penalty)

    def _keep(self, stage: str, number: int, outputs: Outputs) -> None:
        """Keep the outputs of the epoch's batch `number`.

        Of many training rows, only the last ones are kept; of many others, statistics.
        """
        if number == 0:
            self.running.pop(stage, None)
        if number == 0 and stage == "train":
            self._divergence = None
        if self._outputs.is_full(stage, number):
            if stage == "train":
                self._drop_old_outputs()
            else:
                self._add_to_running(stage)
        self._outputs.add(stage, number, outputs)

    def _drop_old_outputs(self) -> None:
        """Forget the older half of the training outputs, after a check of their logits."""
        first, batches = self._outputs.num_taken("train"), self._outputs.drop_half("train")
        bad = torch.stack([~logits.isfinite().all(-2) for logits in batches]).any(0)
        if bad.any() and self._divergence is None:  # raised at the end of the epoch, by all processes
            later = len(self._outputs.logits("train"))
            error = find_divergence(self.trainer, self._logit_names, batches, bad, first=first, later=later)
            self._divergence = error, bad

    def _add_to_running(self, stage: str) -> None:
        """Replace the outputs that are kept by statistics of them."""
        outputs = self._outputs.take(stage, self.device, self.trainer.world_size == 1)
        if stage not in self.running:
            self.running[stage] = RunningMetrics(self.metrics.tasks, self.num_replicas)
            self.test_gates = [] if stage == "test" else self.test_gates
        if outputs is None:
            return
        self.running[stage].add(outputs, keeps_sample=self.trainer.state.fn != "fit")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.throughput.add(batch.labels.shape[-2])
        loss = self._step(batch, "train", batch_idx)
        # log() takes longer than the step, so it is called only when its value is written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", loss.detach().mean(), prog_bar=True)
        loss = loss.sum() if self.has_replicas else loss
        weight = None if self.balancer else self._weight_of_process(batch)
        return loss if weight is None else loss * weight

    def _totals(self, batch: Batch, stage: str) -> Tensor | None:
        """The weights of labels, summed over processes and divided by their number: [T], or [R, T].

        DDP averages the gradients of processes, so these totals give the gradient of all rows together.
        """
        if stage != "train" or self.trainer.world_size == 1 or not has_weights(batch):
            return None
        _, known = self._first_objective.labels_in_loss(batch.labels, batch.known)
        weights = loss_weights(known, batch.weights)
        assert weights is not None
        reduced: Tensor = self.trainer.strategy.reduce(weights.sum(-2), reduce_op="sum")
        return reduced / self.trainer.world_size

    def _weight_of_process(self, batch: Batch) -> Tensor | None:
        """The factor that weights this process's mean loss by its rows; DDP weights processes equally.

        None: it is 1. Without weights, processes differ only in the last batch, by their number of rows.
        """
        if self.trainer.world_size == 1 or not self.trainer.is_last_batch or has_weights(batch):
            return None
        rows = torch.tensor(float(batch.labels.shape[-2]), device=self.device)
        return rows * self.trainer.world_size / self.trainer.strategy.reduce(rows.clone(), reduce_op="sum")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val", batch_idx)
        if batch_idx == 0:
            self._first_val_batch = batch

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test", batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predictions [B, L] in float64: probabilities, or values in the label's unit."""
        return self.predictions_of(self._compute(batch).logits)

    def predictions_of(self, logits: Tensor) -> Tensor:
        """Turn logits [..., L] into predictions [..., L] in float64."""
        columns = zip(self.metrics.tasks, logit_columns(self.metrics.tasks), strict=True)
        return torch.cat([task.predict(logits[..., own]) for task, own in columns], dim=-1)

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
        return self.predictions_of(torch.cat(parts, dim=-2))

    def on_validation_start(self) -> None:
        self.throughput.pause(self.device)

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train")
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self.balancer:
            self.balancer.end_epoch()

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        statistics = self._log_statistics()
        if self.is_in_training:
            metrics = {k: value.cpu() for k, value in self.metric_values.items() if k.startswith("val/")}
            self.history.append((self.current_epoch + 1, self.global_step, metrics | statistics))

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        outputs = self._finish_epoch(stage)
        metrics = self.train_metrics if stage == "train" else self.metrics
        values = self.running[stage].compute(stage) if outputs is None else metrics(stage, *outputs)
        self.metric_values |= values
        self.log_epoch(values, self.monitor)

    def _finish_epoch(self, stage: str) -> Outputs | None:
        """Collect the epoch's outputs, and check the logits. None: `running` has the statistics.

        Raises:
            UserError: a logit is not finite, in this process or another one.
        """
        self.throughput.pause(self.device)
        reduce = self.trainer.strategy.reduce
        is_running = torch.tensor(float(stage in self.running), device=self.device)
        if reduce(is_running, reduce_op="sum"):
            self._finish_running(stage)
            return None
        train_batches, first = self._outputs.logits("train"), self._outputs.num_taken("train")
        # Logits that were moved to the CPU stay there unless processes must exchange them.
        outputs = self._outputs.take(stage, self.device, self.trainer.world_size == 1)
        assert outputs is not None
        logits = outputs.logits
        self.metrics.to(logits.device)
        self.train_metrics.to(logits.device)
        count = torch.tensor(logits.shape[-2], device=self.device)
        self.num_rows[stage] = int(reduce(count, reduce_op="sum"))
        bad = ~logits.isfinite().all(-2)
        error, dropped = self._divergence or (None, bad)
        # Every process must learn of it, because only the first one prints the error.
        bad = reduce((bad | dropped).to(self.device, torch.int32), reduce_op="sum").bool()
        if bad.any():
            if self.trainer.state.fn != "fit":
                raise UserError(f"the {stage} rows have logits that are not finite")
            raise error or find_divergence(self.trainer, self._logit_names, train_batches, bad, first=first)
        if self.trainer.state.fn != "fit":
            self.final_logits[stage] = logits.cpu()
        if stage == "val" and self.trainer.is_global_zero:
            self._warn_once(describe_constant_task(logits, self.metrics.tasks), DEAD_TOWER_REMEDY)
        return outputs

    def _finish_running(self, stage: str) -> None:
        """Add the last outputs of the epoch to `running`, and check that no process has a bad logit."""
        self._add_to_running(stage)
        running, reduce = self.running[stage], self.trainer.strategy.reduce
        self.num_rows[stage] = int(
            reduce(torch.tensor(running.num_rows, device=self.device), reduce_op="sum")
        )
        bad = reduce(running.bad.to(self.device, torch.int32), reduce_op="sum").bool()
        if bad.any() and self.trainer.state.fn != "fit":
            raise UserError(f"the {stage} rows have logits that are not finite")
        if bad.any():
            raise find_divergence(self.trainer, self._logit_names, self._outputs.logits("train"), bad)

    @property
    def is_in_training(self) -> bool:
        """Whether training is running; Lightning's sanity check before it does not count."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def _warn_once(self, finding: str | None, remedy: str) -> None:
        """During training, warn of a finding, but only once for each remedy."""
        if finding and remedy not in self._warned and self.is_in_training:
            self._warned.add(remedy)
            log.warning("%s%s", finding, remedy)

    def _log_statistics(self) -> dict[str, Tensor]:
        """Log statistics of balancing, and of gates and ReLUs on the validation rows.

        Warn if a gate has collapsed.
        """
        values = self._dead_units()
        if self.balancer and self.is_in_training:
            values |= self.balancer.take_statistics()
        if self.gates.rows:
            summary = self.gates.summary(partial(self.trainer.strategy.reduce, reduce_op="sum"))
            values |= summary.by_name(self._task_names)
            self._warn_once(summary.describe_collapse(self._task_names), self._collapse_remedy)
        self.log_epoch({name: value.mean() for name, value in values.items()})
        return {name: value.cpu() for name, value in values.items()}

    def _dead_units(self) -> dict[str, Tensor]:
        """The share of ReLU units that are 0 in every one of the first validation rows."""
        batch = self._first_val_batch
        levels, numbers = batch.levels[:DEAD_UNIT_ROWS], batch.numbers[:DEAD_UNIT_ROWS]
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            network: Any = self.objective.network
            dead = dead_units(network, levels, precision.convert_input(numbers))
        units = [unit.flatten() for unit in dead.values()]
        return {"val/units/dead": torch.cat(units).double().mean()} if units else {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: random states, the epoch's logits so far, and the history.

        Raises:
            UserError: a weight is not finite. The previous checkpoint then stays the newest.
        """
        bad = self._bad_weights()
        if bad.any():
            batches = self._outputs.logits("train")
            raise find_divergence(self.trainer, self._logit_names, batches, bad, is_weight=True)
        rng_states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            rng_states += torch.cuda.get_rng_state_all()
        checkpoint["mmoe"] = {
            "should_stop": self.trainer.should_stop,
            "generators": rng_states,
            "outputs": self._outputs.state_dict(),
            "running": {stage: one.state_dict() for stage, one in self.running.items()},
            "history": self.history,
            "values": self.metric_values,
            "balancer": self.balancer and self.balancer.state_dict(),
        }

    def _bad_weights(self) -> Tensor:
        """[L], all True if any weight is not finite. A bad weight is not traced to a task."""
        # In parts, because `isfinite` needs several times the memory of a table of vectors.
        parts = (
            part for weight in self.objective.parameters() for part in torch.split(weight.flatten(), 2**20)
        )
        is_finite = all(bool(part.isfinite().all()) for part in parts)
        return torch.full((len(self._logit_names),), not is_finite)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint["mmoe"]
        self._rng_states, self._should_stop = stored["generators"], stored["should_stop"]
        self._outputs.load_state_dict(stored["outputs"])
        for stage, state in stored["running"].items():
            self.running[stage] = RunningMetrics(self.metrics.tasks, self.num_replicas)
            self.running[stage].load_state_dict(state)
        self.history, self.metric_values = list(stored["history"]), dict(stored["values"])
        if self.balancer and self.is_in_training:
            self.balancer.load_state_dict(stored["balancer"])

    def on_train_start(self) -> None:
        """Restore the checkpoint's state, in the last hook before the first random number is drawn."""
        self.trainer.should_stop |= self._should_stop  # Lightning forgets an early stop
        self._outputs.to(self.device)
        rank = self.trainer.global_rank
        if rank:  # the checkpoint holds rank 0's outputs; each rank needs its own dropout
            self._outputs, self.running = EpochOutputs(), {}
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
        ensembles = [m for m in self.objective.modules() if isinstance(m, Ensemble)]
        has_tables = any(p.grad is not None and p.grad.is_sparse for p in self.objective.parameters())
        learns_weights = self.balancer is not None and bool(self.balancer.learned)
        is_plain = not (self.stacked_dims or ensembles or has_tables or learns_weights)
        if gradient_clip_algorithm == "value" and learns_weights:
            nn.utils.clip_grad_value_(self.objective.parameters(), gradient_clip_val)
            return
        if gradient_clip_algorithm == "value" or is_plain:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        members = {id(p) for ensemble in ensembles for p in ensemble.members.parameters()}
        for is_member in (True, False):
            chosen = [p for p in self.objective.parameters() if (id(p) in members) is is_member]
            clip_grad_norm_per_copy(chosen, gradient_clip_val, self.stacked_dims + is_member)


def has_weights(batch: Batch) -> bool:
    """Whether the labels of a batch have different weights in the loss."""
    return batch.known is not None or batch.weights is not None
