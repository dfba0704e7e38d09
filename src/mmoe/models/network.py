"""Inputs and a model as one network, and the output that every model returns.

B batch, P level slots of a row, M numeric columns, T tasks, L logits of all tasks, E experts, K members with
a loss.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmoe.data.batch import Batch, blank_rows
from mmoe.data.schema import Schema
from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.models.inputs import Inputs


class Output(NamedTuple):
    """Logits and gate weights of a batch.

    Shape:
        logits: [B, L]: those of the first task, then those of the second, and so on. A task of several
            classes has a logit for each; other tasks have one, and L is T if there are only these.
        gates: [B, T, E]; the E weights of a task sum to 1. A model without gates has E = 0.
    """

    logits: Tensor
    gates: Tensor

    @classmethod
    def without_gates(cls, logits: Tensor, num_tasks: int) -> "Output":
        return cls(logits, logits.new_zeros(*logits.shape[:-1], num_tasks, 0))


class OutputOfMembers(NamedTuple):
    """The output of ensembles and expert heads in training, where every member has its own loss.

    Shape:
        logits, gates: see `Output`. member_logits: [K, B, L], the logits that the losses are computed from.
    """

    logits: Tensor
    gates: Tensor
    member_logits: Tensor


class Network(nn.Module):
    """The input layer followed by a model: everything that is trained, saved and exported.

    A model with `takes_sparse_inputs` may get `SparseInputs` from `Inputs`, unless `allow_sparse` is false;
    others get a tensor. A model whose `has_penalty` is true has a method `forward_with_penalty`, which
    returns its output and a scalar that is added to the loss.

    Shape:
        levels: [B, P]; numbers: [B, M]; sparse: see `Batch`; output: the output of the model.
    """

    def __init__(self, inputs: Inputs, model: nn.Module, allow_sparse: bool = True) -> None:
        super().__init__()
        self.inputs = inputs
        self.model = model
        # A user's subclass with a forward method of its own gives a dense tensor.
        gives_sparse = getattr(type(inputs), "forward", None) is Inputs.forward
        takes_sparse = getattr(model, "takes_sparse_inputs", False)
        self._may_be_sparse = allow_sparse and gives_sparse and takes_sparse

    def forward(
        self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None = None
    ) -> Output | OutputOfMembers:
        """Encode the rows, then apply the model."""
        output: Output | OutputOfMembers = self.model(self._encode(levels, numbers, sparse))
        return output

    def forward_with_penalty(
        self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None = None
    ) -> tuple[Output, Tensor]:
        """As `forward`, and the penalty of a model that has one."""
        return self.model.forward_with_penalty(self._encode(levels, numbers, sparse))  # type: ignore[no-any-return, operator]

    def encode_rows(self, rows: Batch, batch_size: int) -> Batch:
        """Add `sparse` to rows if batches of this size are faster with it; see `Inputs.encode_rows`.

        Rows that differ by replica stay as they are.
        """
        is_possible = self._may_be_sparse and rows.labels.ndim == 2
        return self.inputs.encode_rows(rows, batch_size) if is_possible else rows

    def _encode(self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None) -> Any:
        if self._may_be_sparse:
            return self.inputs(levels, numbers, sparse, allow_sparse=True)
        return self.inputs(levels, numbers)


def run_blank_rows(network: nn.Module, schema: Schema) -> Any:
    """Run a network in evaluation mode on two blank rows, to find the shapes of its outputs."""
    rows = blank_rows(schema)
    return run_in_eval_mode(network, rows.levels, rows.numbers)


@torch.inference_mode()
def run_in_eval_mode(module: nn.Module, *inputs: Any) -> Any:
    """Run a module in evaluation mode, then restore its mode."""
    was_training = module.training
    try:
        return module.eval()(*inputs)
    finally:
        module.train(was_training)
