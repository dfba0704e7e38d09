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

from mmoe.data.datamodule import DataModule
from mmoe.data.encode import Rows
from mmoe.divergence import constant, diverged
from mmoe.gates import GateStatistics, dead_units
from mmoe.metrics import METRICS, TaskMetrics, predicted
from mmoe.models.inputs import Inputs
from mmoe.models.mmoe import MMoE
from mmoe.objective import Objective, Outcome
from mmoe.overhead import LightModule

log = logging.getLogger(__name__)

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
        optimizer: from parameters to an optimizer.
        scheduler: from the optimizer to a schedule that steps once an epoch; None keeps the rate.

    Raises:
        ValueError: the optimizer or the scheduler refuses its arguments.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.objective: nn.Module = objective
        self.metrics = TaskMetrics(objective.tasks)
        self.gates = GateStatistics()
        first = objective.tasks[0]  # the main task, for the progress bar
        self.monitor = f"val/{first.name}/{next(iter(METRICS[first.kind]))}"
        self._task_names = [task.name for task in objective.tasks]
        self.values: dict[str, Tensor] = {}  # of the last epoch of each stage, by `{stage}/{task}/{metric}`
        self.history: list[tuple[int, int, dict[str, Tensor]]] = []  # epoch, step and values of validations
        self._optimizer, self._scheduler = optimizer, scheduler
        self._configure([nn.Parameter(torch.empty(0))])  # its arguments are checked before training starts
        self._generators: list[Tensor] = []
        self._should_stop = False
        self._warned: set[str] = set()
        mixes = isinstance(objective.network.model, MMoE)
        self._remedy = REMEDY if mixes else ""
        self._some_rows: Rows
        self._outputs: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by stage

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

    def _step(self, batch: Rows, stage: str) -> Tensor:
        """The loss of a batch; its logits are kept for the metrics of the epoch."""
        loss, logits, gates = self._apply_to(batch)
        self._outputs[stage].append((logits.detach(), batch.labels))
        if stage == "val" and gates.shape[-1]:
            self.gates.update(gates)
        return loss

    def _apply_to(self, batch: Rows) -> Outcome:
        """Loss, logits and gates of a batch."""
        return self.objective(*batch)  # type: ignore[no-any-return]

    def _finish(self, stage: str) -> None:
        """Log the metrics of an epoch's rows."""
        values = self.metrics(stage, *self._rows(stage))
        self.values |= values
        for name, value in values.items():
            self.log(name, value, prog_bar=name == self.monitor)

    def _warn_once(self, found: str | None, remedy: str) -> None:
        """Say in training what was found, and what helps, unless that was said before."""
        if found and remedy not in self._warned and self.trainer.state.fn == "fit":
            self._warned.add(remedy)
            log.warning("%s%s", found, remedy)

    def _rows(self, stage: str) -> tuple[Tensor, Tensor]:
        """Logits [N, T] and labels [N, T] of the epoch, which end with it."""
        pairs = self._outputs.pop(stage)
        logits, labels = (torch.cat(parts, dim=-2) for parts in zip(*pairs, strict=True))
        if not logits.isfinite().all():
            trained = [part for part, _ in (pairs if stage == "train" else self._outputs["train"])]
            bad = ~logits.isfinite().all(-2)
            if self.trainer.state.fn != "fit":
                raise ValueError(f"the {stage} rows have logits that are not finite")
            raise diverged(self.trainer, self._task_names, trained, bad)
        if stage == "val" and self.trainer.is_global_zero:
            self._warn_once(constant(logits, self._task_names), REVIVAL)
        return logits, labels

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        # Logging costs more than the step, so it is left alone where nothing would be written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        self._step(batch, "val")
        if batch_idx == 0:
            self._some_rows = batch

    def test_step(self, batch: Rows, batch_idx: int) -> None:
        self._step(batch, "test")

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
        logits = torch.cat(parts, dim=-2)
        return torch.stack([predicted(logits[..., i], t) for i, t in enumerate(self.metrics.tasks)], dim=-1)

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        described = self._describe_gates()
        if self.trainer.state.fn == "fit":
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
                logits, labels = (torch.cat(parts, dim=-2) for parts in zip(*pairs, strict=True))
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

    def configure_optimizers(self) -> Any:
        return self._configure(self.objective.parameters())

    def _configure(self, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
        try:
            optimizer = self._optimizer(parameters)
        except (ValueError, TypeError) as error:
            raise ValueError(f"optimizer: {error}") from error
        if self._scheduler is None:
            return {"optimizer": optimizer}
        try:
            return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}
        except (ValueError, TypeError) as error:
            raise ValueError(f"scheduler: {error}") from error
