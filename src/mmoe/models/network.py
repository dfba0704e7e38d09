"""Inputs and model as one network, from codes and numerics to logits and gates.

B batch, C categorical columns, M numeric columns.
"""

from torch import Tensor, nn

from mmoe.models.inputs import Inputs, forbid_sums
from mmoe.models.output import Output
from mmoe.models.sparse import Entries


class Network(nn.Module):
    """A model behind its inputs: all that is trained, saved and exported.

    A model with `takes_sparse_inputs` gets them from its inputs, others get a tensor.

    Shape:
        codes: [B, C]; numerics: [B, M]; or what `Inputs.encode_once` made of both; output: that of the model.
    """

    def __init__(self, inputs: Inputs, model: nn.Module) -> None:
        super().__init__()
        self.inputs = inputs
        self.model = model
        if not getattr(model, "takes_sparse_inputs", False):
            forbid_sums(inputs)

    def forward(self, codes: Tensor | Entries, numerics: Tensor) -> Output:
        """Encode the rows, then apply the model."""
        output: Output = self.model(self.inputs(codes, numerics))
        return output
