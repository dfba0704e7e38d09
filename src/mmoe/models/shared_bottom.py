"""One network for all tasks, with a tower for each (Caruana, 1997; Ma et al., KDD 2018, section 3.1).

B batch, I inputs, H bottom width, T tasks.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmoe.arguments import check_integers, check_widths
from mmoe.models.layers import FanOut, activate, hidden_layers, tower
from mmoe.models.output import Output
from mmoe.models.sparse import SparseInputs


class SharedBottom(nn.Module):
    """The bottom is shared by all tasks: y_k = h_k(f(x)).

    Args:
        num_inputs: I.
        num_tasks: T.
        bottom_units: widths of the bottom's layers; the last is H.
        tower_units: widths of a tower's hidden layers, before its one output.
        activation: of hidden layers; a key of `layers.ACTIVATIONS`.
        dropout: share of hidden units set to 0 in training.

    Raises:
        UserError: an argument is outside its range.

    Shape:
        x: [B, I]; output: logits [B, T] and no gates.
    """

    takes_sparse_inputs = True

    def __init__(
        self,
        num_inputs: int,
        num_tasks: int,
        bottom_units: Sequence[int] = (128,),
        tower_units: Sequence[int] = (8,),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_inputs, num_tasks = check_integers(1, num_inputs=num_inputs, num_tasks=num_tasks)
        (bottom_units,) = check_widths(1, bottom_units=bottom_units)
        (tower_units,) = check_widths(0, tower_units=tower_units)
        self.bottom = nn.Sequential(
            FanOut(1, num_inputs, bottom_units[0]), *hidden_layers(1, bottom_units, activation, dropout)
        )
        # The first layers of all towers have the same input.
        first = FanOut(num_tasks, bottom_units[-1], [*tower_units, 1][0])
        self.towers = nn.Sequential(first)
        if tower_units:
            self.towers.extend(activate(activation, dropout))
            self.towers.extend(tower(num_tasks, tower_units, activation, dropout))

    def forward(self, x: Tensor | SparseInputs) -> Output:
        """Logits of a batch."""
        h = self.bottom(x).squeeze(1)  # [B, H]
        return Output.without_gates(self.towers(h).squeeze(-1))
