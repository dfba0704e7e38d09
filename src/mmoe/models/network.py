"""Inputs and a model as one network, and the output that every model returns.

B batch, P level slots of a row, M numeric columns, T tasks, L logits of all tasks, E experts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmoe.data.batch import blank_rows
from mmoe.data.schema import Schema
from mmoe.data.sparse_matrix import SparseMatrix
from mmoe.models.inputs import Inputs, use_dense_inputs


class Output(NamedTuple):
    """Logits and gate weights of a batch.

    Shape:
        logits: [B, L]: those of the first task, then those of the second, and so on. A task of several
            classes has a logit for each; other tasks have one, and L is T if there are only these. In
            training, ensembles and expert heads add a dimension in front: the logits of each loss.
        gates: [B, T, E]; the E weights of a task sum to 1. A model without gates has E = 0.
    """

    logits: Tensor
    gates: Tensor

    @classmethod
    def without_gates(cls, logits: Tensor, num_tasks: int) -> "Output":
        return cls(logits, logits.new_zeros(*logits.shape[:-1], num_tasks, 0))


class Network(nn.Module):
    """The input layer followed by a model: everything that is trained, saved and exported.

    A model with `takes_sparse_inputs` may get `SparseInputs` from its inputs; others get a tensor. A model
    whose `has_penalty` is true has a method `forward_with_penalty`, which returns its output and a scalar
    that is added to the loss.

    Shape:
        levels: [B, P]; numbers: [B, M]; sparse: see `Batch`; output: the output of the model.
    """

    def __init__(self, inputs: Inputs, model: nn.Module) -> None:
        super().__init__()
        self.inputs = inputs
        self.model = model
        # Custom inputs may contain `Inputs`, but take no sparse rows.
        if not (isinstance(inputs, Inputs) and getattr(model, "takes_sparse_inputs", False)):
            use_dense_inputs(inputs)

    def forward(self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None = None) -> Output:
        """Encode the rows, then apply the model."""
        output: Output = self.model(self._encode(levels, numbers, sparse))
        return output

    def forward_with_penalty(
        self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None = None
    ) -> tuple[Output, Tensor]:
        """As `forward`, and the penalty of a model that has one."""
        return self.model.forward_with_penalty(self._encode(levels, numbers, sparse))  # type: ignore[no-any-return, operator]

    def _encode(self, levels: Tensor, numbers: Tensor, sparse: SparseMatrix | None) -> Any:
        # Custom inputs may take levels and numbers only.
        return self.inputs(levels, numbers) if sparse is None else self.inputs(levels, numbers, sparse)


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
