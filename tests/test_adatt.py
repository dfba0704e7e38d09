import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer
from torch import Tensor
from torch.nn.functional import linear

from mmoe import AdaTT


def looped(model: AdaTT, x: Tensor, tasks: int, own: int, shared: int) -> tuple[Tensor, Tensor]:
    """Section 3 of the paper, one unit, one expert and one gate at a time."""
    inputs = [x] * (tasks + 1)
    counts = [own] * tasks + [shared]
    for number, level in enumerate(model.levels):
        units = [unit for unit, count in enumerate(counts) for _ in range(count)]  # the unit of each expert
        experts = [layer_by_layer(level.experts, e, inputs[unit]) for e, unit in enumerate(units)]
        weight, bias = level.gates.by_layer()
        is_last = number == len(model.levels) - 1
        mixed, gates = [], []
        for unit in range(tasks if is_last else tasks + 1):
            gate = linear(inputs[unit], weight[unit].T, bias[unit]).softmax(1)
            fused = sum(gate[:, e : e + 1] * expert for e, expert in enumerate(experts))
            native = sum(level.native[e] * experts[e] for e, owner in enumerate(units) if owner == unit)
            mixed.append(fused + native)
            gates.append(gate)
        inputs = mixed
    logits = [layer_by_layer(model.towers, t, inputs[t]) for t in range(tasks)]
    return torch.cat(logits, dim=1), torch.stack(gates, dim=1)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("tasks", "own", "shared"), [(2, 3, 2), (1, 1, 1), (3, 1, 4)])
def test_equals_a_plain_loop_with_gradients(levels: int, tasks: int, own: int, shared: int):
    torch.manual_seed(0)
    model = AdaTT(10, tasks, levels, own, shared, expert_units=[6, 5], tower_units=[4], activation="gelu")
    with torch.no_grad():
        for level in model.levels:
            level.native.uniform_()
    assert_equal_with_gradients(model, lambda x: looped(model, x, tasks, own, shared))


def test_gates_cover_all_experts_and_sum_to_one():
    gates = AdaTT(10, 2, task_experts=3, shared_experts=2)(torch.randn(7, 10)).gates
    assert gates.shape == (7, 2, 8)
    assert (gates > 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(7, 2))


def test_the_residual_starts_as_the_mean_of_the_units_own_experts():
    native = [level.native.tolist() for level in AdaTT(10, 2, 2, task_experts=2, shared_experts=4).levels]
    assert native == [[0.5] * 4 + [0.25] * 4, [0.5] * 4 + [0.0] * 4]


def test_every_expert_gets_a_gradient():
    torch.manual_seed(0)
    model = AdaTT(10, 2, activation="gelu")
    model(torch.randn(20, 10)).logits.sum().backward()
    for level in model.levels:
        weight = level.experts[0].weight.grad
        by_expert = weight.unflatten(1, (5, 16)).transpose(0, 1) if level.is_first else weight
        assert (by_expert.abs().sum((1, 2)) > 0).all()


def test_one_row_one_task_and_one_expert_of_each_kind():
    logits, gates = AdaTT(10, 1, 2, task_experts=1, shared_experts=1)(torch.randn(1, 10))
    assert (logits.shape, gates.shape) == ((1, 1), (1, 1, 2))


def test_arguments():
    for name in ("num_levels", "task_experts", "shared_experts"):
        with pytest.raises(ValueError, match=f"^{name}=0: must be an integer of at least 1"):
            AdaTT(10, 2, **{name: 0})
