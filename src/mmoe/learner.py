"""How a network is trained: loss, optimizer, metrics.

B batch, T tasks.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mmoe.checks import check_finite
from mmoe.data.encode import Rows
from mmoe.metrics import TaskMetrics
from mmoe.models.mmoe import Output


class Learner(pl.LightningModule):
    """Minimise the sum over tasks of the weighted binary cross-entropy, and keep the metrics.

    Args:
        network: from codes and numerics to logits and gates.
        tasks: names, in the order of the labels.
        optimizer: from parameters to an optimizer.
        scheduler: from the optimizer to a schedule that steps once an epoch; None keeps the rate.
        task_weights: weight in the loss by task name; a task that is not named weighs 1.

    Raises:
        ValueError: a weight is negative, not a number, or names no task.
    """

    task_weights: Tensor

    def __init__(
        self,
        network: nn.Module,
        tasks: Sequence[str],
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        weights = dict(task_weights or {})
        for name, weight in weights.items():
            if name not in tasks:
                raise ValueError(f"task_weights.{name}: must be one of the tasks {', '.join(tasks)}")
            check_finite(0, **{f"task_weights.{name}": weight})
        self.network = network
        self._optimizer, self._scheduler = optimizer, scheduler
        self._configure([nn.Parameter(torch.empty(0))])  # its arguments are checked before training starts
        self.register_buffer(
            "task_weights", torch.tensor([weights.get(name, 1.0) for name in tasks]), persistent=False
        )
        self.metrics = TaskMetrics(tasks)
        self._outputs: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by stage

    def forward(self, codes: Tensor, numerics: Tensor) -> Output:
        """Logits [B, T] and gates [B, T, E] of a batch."""
        output: Output = self.network(codes, numerics)
        return output

    def _step(self, batch: Rows, stage: str) -> Tensor:
        """The loss of a batch; its logits are kept for the metrics of the epoch."""
        logits = self.network(batch.codes, batch.numerics).logits
        self._outputs[stage].append((logits.detach(), batch.labels))
        losses = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        return losses.mean(0) @ self.task_weights

    def _finish(self, stage: str) -> None:
        logits, labels = (torch.cat(tensors) for tensors in zip(*self._outputs.pop(stage), strict=True))
        if not logits.isfinite().all():
            raise ValueError(
                f"training diverged: logits are not finite in epoch {self.current_epoch + 1}; lower the"
                " learning rate (learner.optimizer.lr)"
            )
        metrics = self.metrics(stage, logits, labels)
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name == f"val/{self.metrics.tasks[0]}/auroc")

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        # Logging costs more than the step, so it is left alone where nothing would be written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Rows, batch_idx: int) -> None:
        self._step(batch, "test")

    @torch.inference_mode()
    def predict(self, batches: Iterable[Rows]) -> Tensor:
        """Probabilities [N, T] of all batches' rows, float64, on the CPU; in the trainer's precision."""
        self.eval()
        precision = self.trainer.precision_plugin
        parts = []
        for batch in batches:
            codes, numerics = batch.codes.to(self.device), batch.numerics.to(self.device)
            with precision.forward_context():
                parts.append(self(codes, precision.convert_input(numerics)).logits.cpu())
        return torch.cat(parts).double().sigmoid()

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def configure_optimizers(self) -> Any:
        return self._configure(self.parameters())

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
