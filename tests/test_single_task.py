import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer

from mmoe import SingleTask


@pytest.mark.parametrize("units", [[6], [6, 5, 4]])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_equals_separate_networks_with_gradients(units: list[int], num_tasks: int):
    torch.manual_seed(0)
    model = SingleTask(10, num_tasks, units, activation="gelu")
    networks = range(num_tasks)
    assert_equal_with_gradients(
        model, lambda x: (torch.cat([layer_by_layer(model.layers, t, x) for t in networks], dim=1),)
    )


def test_nothing_is_shared():
    model = SingleTask(10, 2, [6, 4])
    model(torch.randn(20, 10)).logits[:, 0].sum().backward()
    for layer in model.layers:
        if hasattr(layer, "by_layer"):
            assert layer.bias.grad.view(2, -1)[1].abs().sum() == 0


def test_it_has_no_gates():
    assert SingleTask(10, 2)(torch.randn(3, 10)).gates.shape == (3, 2, 0)


def test_arguments():
    with pytest.raises(ValueError, match=r"^units=\[\]: must have the width of at least one layer"):
        SingleTask(10, 2, [])
    with pytest.raises(ValueError, match=r"^num_tasks=0: must be"):
        SingleTask(10, 0)
