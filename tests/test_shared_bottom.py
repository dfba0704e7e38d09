import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer

from mmoe import SharedBottom


@pytest.mark.parametrize("tower_units", [[], [5], [5, 3]])
@pytest.mark.parametrize("bottom_units", [[6], [6, 4]])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_equals_a_bottom_and_towers_with_gradients(bottom_units, tower_units, num_tasks: int):
    torch.manual_seed(0)
    model = SharedBottom(10, num_tasks, bottom_units, tower_units, activation="gelu")

    def looped(x):
        h = layer_by_layer(model.bottom, 0, x)
        return (torch.cat([layer_by_layer(model.towers, t, h) for t in range(num_tasks)], dim=1),)

    assert_equal_with_gradients(model, looped)


def test_arguments():
    with pytest.raises(ValueError, match=r"^bottom_units=\[\]: must have"):
        SharedBottom(10, 2, [])
    with pytest.raises(ValueError, match=r"^tower_units=\[0\]: must be a list"):
        SharedBottom(10, 2, [4], [0])
