"""Find units and tasks that no gradient reaches.

N rows, T tasks, L logits of all tasks, R replicas.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.plugins import Precision
from torch import Tensor, nn

from mmoe.data.batch import Batch
from mmoe.models.replicas import Replicas
from mmoe.tasks import Task, logit_columns

NUM_ROWS = 2048  # a ReLU unit that is 0 in this many rows counts as dead


def describe_constant_task(logits: Tensor, tasks: Sequence[Task]) -> str | None:
    """Describe the first task whose logits, in [N, L], are the same in all rows; None if there is none.

    This happens when all units of a tower are 0 in every row, so no gradient reaches them.
    """
    same = (logits.amax(-2) == logits.amin(-2)).reshape(-1, logits.shape[-1])  # [R, L]
    same = torch.stack([same[:, own].all(-1) for own in logit_columns(tasks)], dim=-1)  # [R, T]
    if logits.shape[-2] < 2 or not same.any():
        return None
    r, t = same.nonzero()[0].tolist()
    where = f" in replica {r}" if logits.ndim == 3 else ""
    return f"the predictions of {tasks[t].name}{where} are the same for all validation rows"


@torch.inference_mode()
def share_of_dead_units(objective: nn.Module, rows: Batch, precision: Precision) -> Tensor | None:
    """The share of ReLU units that are 0 in every one of the first rows, computed in a trainer's precision.

    None if there is no ReLU, and for replicas and ensembles, because hooks cannot see the units of one copy.
    """
    if any(isinstance(module, Replicas) for module in objective.modules()):
        return None
    network: Any = objective.network
    with precision.forward_context():
        numbers = precision.convert_input(rows.numbers[:NUM_ROWS])
        dead = dead_units(network, rows.levels[:NUM_ROWS], numbers)
    return torch.cat([units.flatten() for units in dead.values()]).double().mean() if dead else None


def dead_units(network: nn.Module, levels: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    """For each ReLU, by module name, return a mask [units...]: True where a unit is 0 in every row."""
    dead: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):

            def record(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                dead[name] = (output <= 0).all(0)

            hooks.append(module.register_forward_hook(record))
    try:
        if hooks:
            network(levels, numbers)
    finally:
        for hook in hooks:
            hook.remove()
    return dead
