"""Find the entries of a network's weights that several tasks share.

Weights are stacked over tasks and experts, so one parameter may hold entries of
a single task and entries that all tasks share.

B rows, L logits of all tasks.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.models.esmm import funnel_of
from mmoe.models.network import Network

DRAWS, ROWS = 4, 64
WEIGHT_STD = 0.1


def shared_entries(network: nn.Module, columns: Sequence[slice]) -> dict[str, Tensor]:
    """Find which entries of the parameters get a gradient from the logits of at least two tasks.

    A copy of the model computes with random weights and inputs in float64. An entry counts as reached by a
    task if its gradient is other than 0 in one of several draws.

    Args:
        network: a `Network`. For any other module, the result is empty, and all entries count as shared.
        columns: the columns of each task in the logits [B, L].

    Returns:
        A mask of the shape of each parameter of the model, by the name in the network. Other parameters,
        such as learned vectors, are upstream of the model, and all tasks share them.
    """
    if not isinstance(network, Network):
        return {}
    model = copy.deepcopy(network.model).double().eval()
    funnel = funnel_of(model)
    num_inputs = network.inputs.num_outputs
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached = {name: torch.zeros(len(columns), *p.shape, dtype=torch.bool) for name, p in named.items()}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for _ in range(DRAWS):
            with torch.no_grad():
                for parameter in named.values():
                    parameter.normal_(std=WEIGHT_STD)
            # This scale gives the first layer outputs of about 1.
            x = torch.randn(ROWS, num_inputs, dtype=torch.float64) / (WEIGHT_STD * math.sqrt(num_inputs))
            logits = model(x).logits
            if funnel is not None:  # the loss is that of joint probabilities
                logits = funnel.joint_logits(logits)
            for task, own in enumerate(columns):
                total = (logits[:, own] * torch.randn_like(logits[:, own])).sum()
                gradients = torch.autograd.grad(
                    total, list(named.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(named, gradients, strict=True):
                    if gradient is not None:
                        reached[name][task] |= gradient != 0
    return {f"model.{name}": mask.sum(0) >= 2 for name, mask in reached.items()}
