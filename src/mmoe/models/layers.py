"""The layers that models share. Stacked layers are N linear layers with one weight, applied in one call.

B batch, N layers, I inputs, O outputs, T tasks, E experts, H expert width, W outputs of the widest task, L
logits of all tasks.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmoe.checks import check_integers, check_probabilities, check_widths
from mmoe.errors import ArgumentError
from mmoe.models.sparse_inputs import SparseInputs, linear

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}

BMM_MIN_SIZE = 400  # below this many multiplications, torch.bmm on CPU uses a slow loop
PAD_MIN_ROWS = 256  # in smaller batches the padding costs more than the slow loop


class StackedLinear(nn.Module):
    """N linear layers, each with its own input, initialised like `nn.Linear`.

    Shape:
        x: [B, N, I]; output: [B, N, O].
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_layers, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_layers, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer n to x[:, n]: einsum("bni,nio->bno", x, weight) + bias in one call."""
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight).transpose(0, 1)  # [B, N, O]

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [N, I, O] and biases [N, O]."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return "num_layers={}, in_features={}, out_features={}".format(*self.weight.shape)


class SharedInputLinear(nn.Module):
    """N linear layers that share one input, initialised like `nn.Linear`.

    Their weights are the columns of one matrix [I, N*O], so one product computes all N layers.

    Shape:
        x: [B, I]; output: [B, N, O].
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.shape = (num_layers, out_features)
        width, bound = num_layers * out_features, 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(in_features, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor | SparseInputs) -> Tensor:
        return torch.unflatten(linear(x, self.weight, self.bias), 1, self.shape)  # [B, N, O]

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [N, I, O] and biases [N, O]."""
        weight = torch.unflatten(self.weight, 1, self.shape).transpose(0, 1)  # [N, I, O]
        return weight, self.bias.view(self.shape)  # [N, O]


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, transposed because that is faster on CPU."""
    return logits.movedim(-1, 0).softmax(0).movedim(0, -1)


def mix(gates: Tensor, experts: Tensor) -> Tensor:
    """Mix the experts for each task: einsum("bte,beh->bth", gates, experts).

    On CPU, `torch.bmm` is slow for small matrices, so the gates of large batches are padded with zeros.
    """
    num_rows, num_tasks, num_experts = gates.shape
    if gates.device.type == "cpu" and not torch.compiler.is_compiling() and num_rows >= PAD_MIN_ROWS:
        missing = math.ceil(BMM_MIN_SIZE / (num_experts * experts.shape[2])) - num_tasks
        gates = pad(gates, (0, 0, 0, max(0, missing)))
    return torch.bmm(gates, experts)[:, :num_tasks]  # [B, T, H]


def activation_layers(activation: str, dropout: float) -> list[nn.Module]:
    """The activation, followed by a dropout layer unless `dropout` is 0.

    Raises:
        ArgumentError: the activation is unknown, or dropout is outside [0, 1).
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}")
    (dropout,) = check_probabilities(dropout=dropout)
    return [ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])]


def deeper_layers(num_layers: int, widths: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """Build the layers that follow a first layer with widths[0] outputs.

    Each further width adds an activation, dropout (unless it is 0) and a `StackedLinear` to that width.
    """
    modules: list[nn.Module] = []
    for i, o in pairwise(widths):
        modules += [*activation_layers(activation, dropout), StackedLinear(num_layers, i, o)]
    return modules


def hidden_layers(num_layers: int, widths: Sequence[int], activation: str, dropout: float) -> list[nn.Module]:
    """As `deeper_layers`, with an activation and dropout after the last layer."""
    return [*deeper_layers(num_layers, widths, activation, dropout), *activation_layers(activation, dropout)]


def task_towers(
    num_tasks: int,
    num_inputs: int,
    units: Sequence[int],
    task_logits: "TaskLogits",
    activation: str,
    dropout: float,
) -> nn.Sequential:
    """Build a tower per task: hidden layers of the widths `units`, then the outputs for `task_logits`.

    Shape:
        input: [B, T, num_inputs]; output: [B, T, W], see `TaskLogits`.
    """
    widths = [*units, task_logits.widest]
    return nn.Sequential(
        StackedLinear(num_tasks, num_inputs, widths[0]),
        *deeper_layers(num_tasks, widths, activation, dropout),
    )


class TaskLogits(nn.Module):
    """Turn the outputs of a stacked last layer into logits: those of the first task, then the second, ...

    The layer has W outputs for every task, as many as the widest task needs. Surplus ones are dropped.

    Args:
        num_tasks: T.
        task_outputs: the number of logits of each task; None: one each.

    Attributes:
        outputs: the number of logits of each task.
        widest: W.

    Raises:
        ArgumentError: `task_outputs` is not a list of T integers of at least 1.

    Shape:
        x: [B, T, W]; output: [B, L], where L is the sum of `task_outputs`.
    """

    def __init__(self, num_tasks: int, task_outputs: Sequence[int] | None = None) -> None:
        super().__init__()
        (num_tasks,) = check_integers(1, num_tasks=num_tasks)
        (outputs,) = check_widths(1, task_outputs=[1] * num_tasks if task_outputs is None else task_outputs)
        if len(outputs) != num_tasks:
            raise ArgumentError(f"task_outputs={outputs}: must have {num_tasks} numbers, one for each task")
        self.num_tasks, self.outputs, self.widest = num_tasks, outputs, max(outputs)
        kept = [t * self.widest + i for t, width in enumerate(outputs) for i in range(width)]
        self.drops = len(kept) < num_tasks * self.widest
        self.kept = nn.Buffer(torch.tensor(kept), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)  # [B, T*W]
        return logits.index_select(1, self.kept) if self.drops else logits
