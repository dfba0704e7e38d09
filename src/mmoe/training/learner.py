"""How a network is trained: optimizer, schedule and metrics around an objective.

B batch, N rows, T tasks.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from mmoe.arguments import check_integers
from mmoe.data.datamodule import DataModule
from mmoe.data.encode import Rows
from mmoe.errors import UserError
from mmoe.models.ensemble import Ensemble
from mmoe.models.inputs import Inputs
from mmoe.models.mmoe import MMoE
from mmoe.models.output import Output
from mmoe.models.replicas import clip_each
from mmoe.training.divergence import constant, diverged
from mmoe.training.gate_statistics import GateStatistics, dead_units
from mmoe.training.lightning_speedups import LightModule
from mmoe.training.objective import Objective, Outcome
from mmoe.training.optimizers import MuonAndAdamW
from mmoe.training.tasks import METRICS, TaskMetrics, predicted, validation_metrics

log = logging.getLogger(__name__)

MOST_ON_DEVICE = 2**20  # rows of an epoch whose logits stay on a GPU
SOME_ROWS = 2048  # in which a unit that lives is active
REMEDY = (
    "; a larger model.gate_temperature, such as 10, keeps it mixed, and model.gate_dropout=.1 teaches the"
    " task to do without that expert"
)
REVIVAL = (
    "; all units of its tower may be 0: model.activation=gelu or a lower learning rate (learner.optimizer.lr)"
    " keeps them alive"
)


class Learner(LightModule):
    """Minimise an objective, and keep the metrics of each task by its name.

    Args:
        objective: the network and its loss.
        optimizer: from parameters to an optimizer. torch's Muon gets the matrices, AdamW the rest.
        scheduler: from the optimizer to a schedule of the learning rate; None keeps the rate. An argument
            that is the text `total_steps` becomes the number of optimizer steps of the training.
        interval: `step` or `epoch`, after which the schedule steps; None is `step` for schedules that torch
            defines by step (OneCycleLR, CyclicLR), else `epoch`.
        frequency: the schedule steps every so many intervals; steps are counted in each epoch anew.
        monitor: the validation metric that ReduceLROnPlateau follows and the progress bar shows; None is the
            first one of the main task.

    Raises:
        UserError: an argument is outside its range.

    Shape:
        forward: a batch of `Rows` with B rows; output: logits [B, T] and gates [B, T, E].
    """

    stacked_dims = 0  # in front of each parameter: 1 for replicas

    def __init__(
        self,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        interval: str | None = None,
        frequency: int = 1,
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        if interval not in (None, "step", "epoch"):
            raise UserError(f"interval={interval}: must be step or epoch")
        check_integers(1, frequency=frequency)
        self.objective: nn.Module = objective
        self.metrics = TaskMetrics(objective.tasks)
        self.gates = GateStatistics()
        first = objective.tasks[0]  # the main task, for the progress bar
        self.monitor = monitor or f"val/{first.name}/{next(iter(METRICS[first.kind]))}"
        self._task_names = [task.name for task in objective.tasks]
        self.values: dict[str, Tensor] = {}  # of the last epoch of each stage, by `{stage}/{task}/{metric}`
        self.num_rows: dict[str, int] = {}  # of all processes, in the last epoch of each stage
        self.history: list[tuple[int, int, dict[str, Tensor]]] = []  # epoch, step and values of validations
        self._optimizer, self._scheduler = optimizer, scheduler
        self._interval, self._frequency = interval, frequency
        self._generators: list[Tensor] = []
        self._should_stop = False
        self._warned: set[str] = set()
        mixes = isinstance(objective.network.model, MMoE)
        self._remedy = REMEDY if mixes else ""
        self._some_rows: Rows
        self._outputs: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by stage
        self._on_device = 0  # rows of it that are not in the CPU's memory

    def setup(self, stage: str) -> None:
        """Have the training rows encoded once, where that is possible."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DataModule):
            inputs = [module for module in self.objective.modules() if isinstance(module, Inputs)]
            on_cpu = self.trainer.strategy.root_device.type == "cpu"
            data.encode = inputs[0].encode_once if inputs and on_cpu else None

    def teardown(self, stage: str) -> None:
        """Leave the rows to others as they are."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DataModule):
            data.encode = None

    def forward(self, batch: Rows) -> Output:
        """Logits and gates of a batch."""
        _, logits, gates = self._apply_to(batch)
        return Output(logits, gates)

    def _step(self, batch: Rows, stage: str, number: int) -> Tensor:
        """The loss of batch `number` of an epoch; its logits are kept for the metrics of the epoch."""
        loss, logits, gates = self._apply_to(batch)
        self._keep(stage, number, logits.detach(), batch.labels)
        if stage == "val" and gates.shape[-1]:
            self.gates.update(gates)
        return loss

    def _apply_to(self, batch: Rows) -> Outcome:
        """Loss, logits and gates of a batch."""
        return self.objective(*batch)  # type: ignore[no-any-return]

    def _keep(self, stage: str, number: int, logits: Tensor, labels: Tensor) -> None:
        """Keep logits and labels of a batch; an optimizer with a closure, as LBFGS, may give it again."""
        kept = self._outputs[stage]
        del kept[number:]
        kept.append((logits, labels))
        if logits.device.type != "cpu":
            self._on_device += logits.shape[-2]
            if self._on_device > MOST_ON_DEVICE:
                for stage, pairs in self._outputs.items():
                    self._outputs[stage] = [(a.cpu(), b.cpu()) for a, b in pairs]
                self._on_device = 0

    def _finish(self, stage: str) -> None:
        """Log the metrics of an epoch's rows."""
        values = self.metrics(stage, *self._rows(stage))
        self.values |= values
        for name, value in values.items():
            self.log(name, value, prog_bar=name == self.monitor)

    @property
    def is_in_training(self) -> bool:
        """Whether this is a training, and past the few validation batches that Lightning tries before."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def _warn_once(self, found: str | None, remedy: str) -> None:
        """Say in training what was found, and what helps, unless that was said before."""
        if found and remedy not in self._warned and self.is_in_training:
            self._warned.add(remedy)
            log.warning("%s%s", found, remedy)

    def _rows(self, stage: str) -> tuple[Tensor, Tensor]:
        """Logits [N, T] and labels [N, T] of the epoch, which end with it."""
        pairs = self._outputs.pop(stage)
        count = torch.tensor(sum(part.shape[-2] for part, _ in pairs), device=self.device)
        self.num_rows[stage] = int(self.trainer.strategy.reduce(count, reduce_op="sum"))
        # Where some have left the GPU all do, unless processes are to exchange them.
        moved = any(part.device != self.device for part, _ in pairs) and self.trainer.world_size == 1
        device = torch.device("cpu") if moved else self.device
        logits, labels = (
            torch.cat([part.to(device) for part in parts], dim=-2) for parts in zip(*pairs, strict=True)
        )
        self.metrics.to(device)
        self._on_device = 0
        if not logits.isfinite().all():
            trained = [part for part, _ in (pairs if stage == "train" else self._outputs["train"])]
            bad = ~logits.isfinite().all(-2)
            if self.trainer.state.fn != "fit":
                raise UserError(f"the {stage} rows have logits that are not finite")
            raise diverged(self.trainer, self._task_names, trained, bad)
        if stage == "val" and self.trainer.is_global_zero:
            self._warn_once(constant(logits, self._task_names), REVIVAL)
        return logits, labels

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train", batch_idx)
        if self.trainer.world_size > 1 and self.trainer.is_last_batch:  # the shares of others are equal
            loss = loss * self._share(batch)
        # Logging costs more than the step, so it is left alone where nothing would be written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        self._step(batch, "val", batch_idx)
        if batch_idx == 0:
            self._some_rows = batch

    def test_step(self, batch: Rows, batch_idx: int) -> None:
        self._step(batch, "test", batch_idx)

    def predict_step(self, batch: Rows, batch_idx: int) -> Tensor:
        """Predictions [B, T] of a batch, float64: probabilities, and the numbers of regressions."""
        return self._predicted(self._apply_to(batch).logits)

    def _predicted(self, logits: Tensor) -> Tensor:
        columns = [predicted(logits[..., i], task) for i, task in enumerate(self.metrics.tasks)]
        return torch.stack(columns, dim=-1)

    def _share(self, batch: Rows) -> Tensor:
        """The weight of this process's mean loss, because gradients are averaged evenly over processes."""
        rows = torch.tensor(float(batch.labels.shape[-2]), device=self.device)
        return rows * self.trainer.world_size / self.trainer.strategy.reduce(rows.clone(), reduce_op="sum")

    @torch.inference_mode()
    def predict(self, batches: Iterable[Rows]) -> Tensor:
        """Predictions [N, T] of all batches' rows, float64, on the CPU; in the trainer's precision."""
        self.eval()
        precision = self.trainer.precision_plugin
        parts = []
        for batch in batches:
            rows = Rows(*(precision.convert_input(tensor.to(self.device)) for tensor in batch))
            with precision.forward_context():
                parts.append(self._apply_to(rows).logits.cpu())
        return self._predicted(torch.cat(parts, dim=-2))

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        described = self._describe_gates()
        if self.is_in_training:
            values = {name: value.cpu() for name, value in self.values.items() if name.startswith("val/")}
            self.history.append((self.current_epoch + 1, self.global_step, values | described))

    def _describe_gates(self) -> dict[str, Tensor]:
        """Log what gates and ReLUs did with the validation rows; warn once of a gate that collapsed."""
        values = self._dead_units()
        if self.gates.rows:
            summary = self.gates.summary(partial(self.trainer.strategy.reduce, reduce_op="sum"))
            values |= summary.by_name(self._task_names)
            self._warn_once(summary.collapsed(self._task_names), self._remedy)
        self.log_dict({name: value.mean() for name, value in values.items()}, rank_zero_only=True)
        return {name: value.cpu() for name, value in values.items()}

    def _dead_units(self) -> dict[str, Tensor]:
        """The share of units that are 0 in the first validation rows, of networks with ReLUs."""
        codes, numerics, _ = (tensor[:SOME_ROWS] for tensor in self._some_rows)
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            network: Any = self.objective.network
            dead = dead_units(network, codes, precision.convert_input(numerics))
        units = [unit.flatten() for unit in dead.values()]
        return {"val/units/dead": torch.cat(units).double().mean()} if units else {}

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: random generators, logits since the epoch began, and the history."""
        generators = [torch.get_rng_state()]
        if torch.cuda.is_available():
            generators += torch.cuda.get_rng_state_all()
        bad = self._bad_weights()
        if bad.any():  # what was written before must stay the newest that can be gone on from
            trained = [logits for logits, _ in self._outputs["train"]]
            raise diverged(self.trainer, self._task_names, trained, bad)
        outputs = {}  # a few large tensors: thousands of small ones would take seconds to write
        for stage, pairs in self._outputs.items():
            if pairs:
                logits, labels = (
                    torch.cat([part.cpu() for part in parts], dim=-2) for parts in zip(*pairs, strict=True)
                )
                outputs[stage] = (logits, labels, [part.shape[-2] for part, _ in pairs])
        checkpoint["mmoe"] = {
            "should_stop": self.trainer.should_stop,
            "generators": generators,
            "outputs": outputs,
            "history": self.history,
            "values": self.values,
        }

    def _bad_weights(self) -> Tensor:
        """Of each task [T] whether a weight is not finite; all share them."""
        finite = all(bool(weight.isfinite().all()) for weight in self.objective.parameters())
        return torch.full((len(self._task_names),), not finite)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint["mmoe"]
        self._generators, self._should_stop = stored["generators"], stored["should_stop"]
        for stage, (logits, labels, sizes) in stored["outputs"].items():
            parts = (tensor.split(sizes, dim=-2) for tensor in (logits, labels))
            self._outputs[stage] = list(zip(*parts, strict=True))
        self.history, self.values = list(stored["history"]), dict(stored["values"])

    def on_train_start(self) -> None:
        """Set the generators of a checkpoint last, when nothing else draws before the first step."""
        self.trainer.should_stop |= self._should_stop  # an early stop, which Lightning forgets
        for stage, pairs in self._outputs.items():
            self._outputs[stage] = [(a.to(self.device), b.to(self.device)) for a, b in pairs]
        rank = self.trainer.global_rank
        if rank:  # the first process counts the rows of before; dropout differs between processes
            self._outputs.clear()
            torch.manual_seed(torch.initial_seed() + 1_000_003 * rank + self.global_step)
        elif self._generators:
            torch.set_rng_state(self._generators[0].cpu())
            for device, state in enumerate(self._generators[1 : 1 + torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state.cpu(), device)
            self._generators = []

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradients of each replica, and of each member of an ensemble, by its own norm."""
        ensembles = [m for m in self.objective.modules() if isinstance(m, Ensemble)]
        copies = self.stacked_dims + len(ensembles)
        if not gradient_clip_val or gradient_clip_algorithm == "value" or not copies:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        members = {id(p) for ensemble in ensembles for p in ensemble.members.parameters()}
        for of_members in (True, False):
            chosen = [p for p in self.objective.parameters() if (id(p) in members) is of_members]
            clip_each(chosen, gradient_clip_val, self.stacked_dims + of_members)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer()
        if self._scheduler is None:
            return {"optimizer": optimizer}
        scheduler = self._make_scheduler(optimizer, self._trainer)
        by_step = isinstance(scheduler, OneCycleLR | CyclicLR)
        interval = self._interval or ("step" if by_step else "epoch")
        if self._trainer is not None:
            self._check_length(scheduler, interval)
        how = {"interval": interval, "frequency": self._frequency, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **how}}

    @property
    def follows_validations(self) -> bool:
        """Whether the schedule is a ReduceLROnPlateau, which needs the metrics of validations."""
        func = getattr(self._scheduler, "func", None)
        return isinstance(func, type) and issubclass(func, ReduceLROnPlateau)

    def check_optimizer(self) -> None:
        """Raise UserError if the optimizer or the scheduler refuses its arguments, before training starts."""
        self._make_scheduler(self._make_optimizer(), None)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        make: Any = self._optimizer
        if isinstance(make, partial) and make.func is getattr(torch.optim, "Muon", None):
            make = partial(MuonAndAdamW, *make.args, **make.keywords)
        try:
            return make(self.objective.parameters())  # type: ignore[no-any-return]
        except (ValueError, TypeError) as error:
            raise UserError(f"learner.optimizer: {error}") from error

    def _make_scheduler(self, optimizer: torch.optim.Optimizer, trainer: Any) -> Any:
        """The schedule; without a trainer, one of some number of steps, to see whether it can be made."""
        make: Any = self._scheduler
        if make is None:
            return None
        if isinstance(make, partial) and "total_steps" in make.keywords.values():
            steps = trainer.estimated_stepping_batches if trainer else 1000
            if steps == float("inf"):
                raise UserError("learner.scheduler: total_steps needs a trainer.max_epochs or max_steps")
            given = {name: steps if v == "total_steps" else v for name, v in make.keywords.items()}
            make = partial(make.func, *make.args, **given)
        if self.follows_validations:
            mode = self._direction()
            if make.keywords.get("mode", mode) != mode:
                raise UserError(f"learner.scheduler.mode: must be {mode} for {self.monitor}")
            if self._interval == "step":
                raise UserError("learner.interval=step: ReduceLROnPlateau follows validations; leave it out")
            make = partial(make, mode=mode)
        try:
            return make(optimizer)
        except (ValueError, TypeError) as error:
            raise UserError(f"learner.scheduler: {error}") from error

    def _direction(self) -> str:
        """Whether the monitored metric is better when larger, `max`, or smaller, `min`."""
        metrics = validation_metrics(self.metrics.tasks)
        if self.monitor not in metrics:
            raise UserError(f"learner.monitor={self.monitor}: must be one of {', '.join(metrics)}")
        return "max" if metrics[self.monitor] else "min"

    def _check_length(self, scheduler: Any, interval: str) -> None:
        """Raise UserError if the schedule ends before the training: torch would say so at that step."""
        limit = getattr(scheduler, "total_steps", None)
        if limit is None or not isinstance(scheduler, OneCycleLR):
            return
        steps = self.trainer.estimated_stepping_batches
        count = (steps if interval == "step" else self.trainer.max_epochs or steps) // self._frequency
        if count > limit:
            raise UserError(
                f"learner.scheduler.total_steps={limit}: must be at least {count}, the {interval}s of the"
                " training"
            )
