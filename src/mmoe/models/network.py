"""Inputs and model as one network, from codes and numerics to logits and gates.

B batch, C categorical columns, M numeric columns.
"""

from torch import Tensor, nn

from mmoe.models.inputs import Inputs
from mmoe.models.output import Output


class Network(nn.Module):
    """A model behind its inputs: all that is trained, saved and exported.

    Shape:
        codes: [B, C]; numerics: [B, M]; output: that of the model.
    """

    def __init__(self, inputs: Inputs, model: nn.Module) -> None:
        super().__init__()
        self.inputs = inputs
        self.model = model

    def forward(self, codes: Tensor, numerics: Tensor) -> Output:
        """Encode the rows, then apply the model."""
        output: Output = self.model(self.inputs(codes, numerics))
        return output
