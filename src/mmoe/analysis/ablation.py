"""What each expert is worth: the metric that a task loses when the expert is masked.

N rows, T tasks, E experts.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mmoe.analysis.rows import network_and_rows, outputs
from mmoe.errors import UserError
from mmoe.training.tasks import METRICS, TaskMetrics


def expert_ablation(
    folder: Path | str,
    split: str = "test",
    checkpoint: str = "best",
    replica: int | None = None,
    trust: Sequence[str] = (),
) -> pd.DataFrame:
    """Line = masked expert, column = task: how much worse the task's first metric (AUROC, MSE) gets.

    Each task's gate weight of the expert is set to 0 and the others are renormalised, without training anew;
    of PLE with several levels the last one's.

    Args:
        folder: the run folder.
        split: of the rows.
        checkpoint: name of a file of checkpoints/.
        replica: which one, from 0, of a run with replicas.
        trust: packages of your own whose classes the run is built from.

    Raises:
        UserError: the run's model has no gates, or a single expert.
    """
    network, rows, schema = network_and_rows(folder, split, checkpoint, replica, trust)
    metrics = TaskMetrics(schema.tasks)
    firsts = {task.name: next(iter(METRICS[task.kind].items())) for task in schema.tasks}

    def values() -> dict[str, float]:
        found = metrics(split, outputs(network, rows)[0], rows.labels)
        return {task: found[f"{split}/{task}/{name}"].item() for task, (name, _) in firsts.items()}

    num_experts = outputs(network, type(rows)(*(tensor[:1] for tensor in rows)))[1].shape[-1]
    if num_experts < 2:
        raise UserError(f"{folder}: its model must have gates over 2 experts or more, has {num_experts}")
    whole, lines = values(), []
    for expert in range(num_experts):
        hook = gate_layer(network).register_forward_hook(_masking(expert))
        masked = values()
        hook.remove()
        lines.append(
            {t: whole[t] - masked[t] if more else masked[t] - whole[t] for t, (_, more) in firsts.items()}
        )
    return pd.DataFrame(lines, index=pd.RangeIndex(num_experts, name="expert"))


def gate_layer(network: nn.Module) -> nn.Module:
    """The module whose output are the gate logits [N, T, E] that mix what the towers read."""
    *_, last = (module for name, module in network.named_modules() if name.split(".")[-1] == "gates")
    assert isinstance(last, nn.Module)
    return last


def _masking(expert: int) -> Any:
    def mask(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        return logits.masked_fill(torch.arange(logits.shape[-1]) == expert, -math.inf)

    return mask
