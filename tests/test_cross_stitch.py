import pytest
import torch
from conftest import assert_equal_with_gradients
from torch.nn.functional import linear

from mmoe import CrossStitch
from mmoe.models.cross_stitch import Stitch


@pytest.mark.parametrize("units", [[6], [6, 4]])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_equals_a_plain_loop_with_gradients(units: list[int], num_tasks: int):
    torch.manual_seed(0)
    model = CrossStitch(10, num_tasks, units, own=0.7, activation="gelu")

    def looped(x):
        h = [x] * num_tasks
        for layer in model.layers:
            if isinstance(layer, Stitch):
                h = [sum(layer.weight[t, s] * h[s] for s in range(num_tasks)) for t in range(num_tasks)]
            elif hasattr(layer, "by_layer"):
                weight, bias = layer.by_layer()
                h = [linear(h[t], weight[t].T, bias[t]) for t in range(num_tasks)]
            else:
                h = [layer(part) for part in h]
        return (torch.cat(h, dim=1),)

    assert_equal_with_gradients(model, looped)


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_initial_weights_sum_to_one_with_the_given_own_weight(num_tasks: int):
    weight = Stitch(num_tasks, 0.9).weight
    torch.testing.assert_close(weight.sum(1), torch.ones(num_tasks))
    if num_tasks > 1:
        torch.testing.assert_close(weight.diagonal(), torch.full((num_tasks,), 0.9))


def test_arguments():
    with pytest.raises(ValueError, match=r"^own=1.5: must be a number in \[0, 1\)"):
        CrossStitch(10, 2, own=1.5)
