import torch

from mmoe import MMoE
from mmoe.data.batch import Batch
from mmoe.training.validation_statistics import dead_units


def test_dead_units():
    model = MMoE(num_inputs=3, num_tasks=1, num_experts=2, expert_units=(2,), tower_units=(2,))
    with torch.no_grad():
        model.weight.zero_()
        model.bias[:4] = torch.tensor([1.0, -1.0, 1.0, 1.0])
        model.towers[0].weight.zero_()
        model.towers[0].bias.fill_(-1)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, levels: torch.Tensor, numbers: torch.Tensor) -> object:
            return self.model(numbers)

    rows = Batch(torch.empty(5, 0), torch.randn(5, 3), torch.empty(5, 1))
    found = dead_units(Network(), rows)
    assert [dead.flatten().tolist() for dead in found.values()] == [[False, True, False, False], [True, True]]
