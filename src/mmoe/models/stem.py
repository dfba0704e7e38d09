"""STEM-Net (Su et al., AAAI 2024): embeddings of each task, which only this task's loss trains.

B batch, I inputs, T tasks, S sources (the T tasks, then the shared part), D embedding width, E all experts, H
expert width, L logits of all tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_integers, check_widths
from mmoe.models.gating import mix, softmax
from mmoe.models.layers import SharedInputLinear, StackedLinear, hidden_layers
from mmoe.models.network import Output
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.models.towers import TaskLogits, task_towers


class STEM(nn.Module):
    """Task-specific and shared embeddings and experts, with a gate that stops gradients between tasks.

    All experts enter the mixture of every task, but the task's loss trains only its own experts and the
    shared ones, and the embeddings below them (all forward, task-specific backward). A gate sees the sum of
    the task's embedding and the shared one, as in the authors' program.

    The paper has a table of vectors for each column, once for each task and once shared. A model here gets
    the encoded inputs x, so an embedding is a linear map of x to D units. It adds up a learned
    vector for each input, multiplied by the input. So each one-hot level has a vector. Vectors that
    `inputs` learns by itself, such as those of `inputs=embedding`, are shared by all tasks. There is one
    level of experts.

    Args:
        num_inputs, num_tasks: I and T.
        task_outputs: number of logits of each task; None: one each. L is their sum.
        embedding_units: D.
        task_experts: experts per task.
        shared_experts: experts that all tasks train.
        expert_units: widths of an expert's layers; the last is H.
        tower_units: widths of a tower's hidden layers, before its outputs.
        activation, dropout: apply to all hidden layers; activation is a key of `layers.ACTIVATIONS`.

    Raises:
        ArgumentError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, L] and gates [B, T, E]: the experts of each task, then the shared ones.
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        embedding_units: int = 32,
        task_experts: int = 2,
        shared_experts: int = 2,
        expert_units: Sequence[int] = (16,),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
        task_outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks, embedding_units = check_integers(
            1, num_inputs=num_inputs, num_tasks=num_tasks, embedding_units=embedding_units
        )
        task_experts, shared_experts = check_integers(
            1, task_experts=task_experts, shared_experts=shared_experts
        )
        (expert_units,) = check_widths(1, expert_units=expert_units)
        (tower_units,) = check_widths(0, tower_units=tower_units)
        task_logits, h = TaskLogits(num_tasks, task_outputs), expert_units[-1]
        sizes = torch.tensor([task_experts] * num_tasks + [shared_experts])  # experts of each source, [S]
        source = torch.arange(num_tasks + 1).repeat_interleave(sizes)  # [E]
        is_trained = (source == torch.arange(num_tasks)[:, None]) | (source == num_tasks)  # [T, E]
        self.source = nn.Buffer(source, persistent=False)
        self.is_trained = nn.Buffer(is_trained, persistent=False)
        self.embeddings = SharedInputLinear(num_tasks + 1, num_inputs, embedding_units)
        self.experts = nn.Sequential(
            StackedLinear(len(source), embedding_units, expert_units[0]),
            *hidden_layers(len(source), expert_units, activation, dropout),
        )
        self.gates = StackedLinear(num_tasks, embedding_units, len(source))
        self.towers = task_towers(num_tasks, h, tower_units, task_logits, activation, dropout)
        self.task_logits = task_logits

    def forward(self, x: Tensor | SparseInputs) -> Output:
        embedded = self.embeddings(x)  # [B, S, D]
        experts = self.experts(embedded.index_select(1, self.source))  # [B, E, H]
        gates = softmax(self.gates(embedded[:, :-1] + embedded[:, -1:]))  # [B, T, E]
        trained = mix(gates.masked_fill(~self.is_trained, 0.0), experts)  # [B, T, H]
        others = mix(gates.masked_fill(self.is_trained, 0.0), experts.detach())  # [B, T, H]
        return Output(self.task_logits(self.towers(trained + others)), gates)  # logits [B, L]
