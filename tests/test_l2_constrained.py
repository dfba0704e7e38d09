from itertools import combinations

import pytest
import torch

from mmoe import L2Constrained, SingleTask


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_the_penalty_is_the_squared_distance_of_all_pairs(num_tasks: int):
    model = L2Constrained(10, num_tasks, [6, 5], strength=0.3).double()
    tasks = []
    for t in range(num_tasks):
        parts = [part[t] for layer in model.layers if hasattr(layer, "by_layer") for part in layer.by_layer()]
        tasks.append(torch.cat([part.flatten() for part in parts]))
    expected = sum(
        (0.3 * (a - b).square().sum() for a, b in combinations(tasks, 2)), torch.zeros(()).double()
    )
    torch.testing.assert_close(model.penalty(), expected)
    parameters = list(model.parameters())
    if num_tasks > 1:
        ours, theirs = (torch.autograd.grad(p, parameters) for p in (model.penalty(), expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_the_networks_equal_single_task():
    torch.manual_seed(0)
    ours = L2Constrained(10, 2)
    torch.manual_seed(0)
    plain = SingleTask(10, 2)
    x = torch.randn(4, 10)
    assert torch.equal(ours(x).logits, plain(x).logits)


def test_arguments():
    with pytest.raises(ValueError, match=r"^strength=-1: must be a finite number of at least 0"):
        L2Constrained(10, 2, strength=-1)
