import torch

from mmoe import MMoE
from mmoe.models.dead_units import dead_units_recorded


def test_dead_units_are_recorded():
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

    network = Network()
    with dead_units_recorded(network) as found:
        network(torch.empty(5, 0), torch.randn(5, 3))
    assert [dead.flatten().tolist() for dead in found.values()] == [[False, True, False, False], [True, True]]
    with dead_units_recorded(network) as found, torch.no_grad():
        for bias in (-1.0, 1.0, -1.0):  # a unit that is alive in any of the batches is not dead
            model.bias[:4] = torch.tensor([bias, -1.0, 1.0, 1.0])
            network(torch.empty(5, 0), torch.randn(5, 3))
    assert found["model.experts.0"].flatten().tolist() == [False, True, False, False]


def test_dead_units_of_a_relu_that_several_layers_share():
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = torch.nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.act(x)[:, :2] - 1)

    with dead_units_recorded(network := Network()) as found:
        for _ in range(2):
            network(torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.5, -1.0]]))
    assert {name: dead.tolist() for name, dead in found.items()} == {
        "act": [False, False, True], "act (2)": [False, True],
    }  # fmt: skip
