import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer
from torch import Tensor
from torch.nn.functional import linear

from mmoe import DSelectK, Replicas
from mmoe.models.dselect_k import SelectorGates


def smooth_step(z: Tensor, gamma: float) -> Tensor:
    inside = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
    return torch.where(z <= -gamma / 2, 0.0, torch.where(z >= gamma / 2, 1.0, inside))


def looped(model: DSelectK, x: Tensor) -> tuple[Tensor, Tensor]:
    """Section 3 of the paper, one task, selector, code and bit at a time."""
    num_tasks, num_selectors, _ = model.selector_shape
    width = model.first_widths[0]
    f = width // model.num_experts
    experts = []
    for e in range(model.num_experts):
        own = slice(e * f, (e + 1) * f)
        first = linear(x, model.weight[:, own].T, model.bias[own])
        experts.append(layer_by_layer(model.experts, e, first))
    if model.is_static:
        selectors = model.selectors.expand(len(x), *model.selector_shape)
    else:
        flat = linear(x, model.weight[:, width:].T, model.bias[width:])
        selectors = flat.reshape(-1, *model.selector_shape)
    logits, gates = [], []
    for t in range(num_tasks):
        share = selectors[:, t, :, 0].softmax(1)
        weights = torch.zeros(len(x), model.num_experts, dtype=x.dtype)
        for k in range(num_selectors):
            bits = smooth_step(selectors[:, t, k, 1:], model.gates.gamma)
            for code in range(2**model.gates.num_bits):
                weight = share[:, k]
                for m in range(model.gates.num_bits):
                    weight = weight * (bits[:, m] if code >> m & 1 else 1 - bits[:, m])
                e = torch.tensor([code % model.num_experts])
                weights = weights.index_add(1, e, weight[:, None])
        mixed = sum(weights[:, e : e + 1] * experts[e] for e in range(model.num_experts))
        logits.append(layer_by_layer(model.towers, t, mixed))
        gates.append(weights)
    return torch.cat(logits, 1), torch.stack(gates, 1)


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize(("experts", "selectors"), [(4, 2), (5, 1), (2, 3)])
def test_equals_a_plain_loop_with_gradients(experts: int, selectors: int, is_static: bool):
    torch.manual_seed(0)
    model = DSelectK(
        10,
        3,
        experts,
        selectors,
        is_static,
        expert_units=[6, 5],
        tower_units=[4],
        activation="gelu",
        gamma=30,
    )
    assert_equal_with_gradients(model, lambda x: looped(model, x))


@pytest.mark.parametrize("num_experts", [1, 2, 3, 6, 8])
def test_gates_sum_to_one_and_use_at_most_k_experts(num_experts: int):
    gates = SelectorGates(num_experts, gamma=1.0)
    z = 20 * torch.randn(50, 2, 3, gates.num_bits)
    weights = gates(torch.randn(50, 2, 3), z)
    assert weights.shape == (50, 2, num_experts)
    torch.testing.assert_close(weights.sum(-1), torch.ones(50, 2))
    is_binary = (z.abs() >= 0.5).all(-1).all(-1)
    assert is_binary.sum() >= 30
    assert ((weights > 0).sum(-1) <= 3)[is_binary].all()
    assert (gates.entropy(z)[is_binary] < 1e-5).all()


def test_static_gates_are_the_same_for_all_rows_and_others_are_not():
    x = torch.randn(9, 10)
    static, dynamic = (DSelectK(10, 2, is_static=flag)(x).gates for flag in (True, False))
    torch.testing.assert_close(static, static[:1].expand_as(static))
    assert not torch.equal(dynamic[0], dynamic[1])


@pytest.mark.parametrize("is_static", [False, True])
def test_the_penalty_is_the_entropy_of_the_codes_and_makes_them_binary(is_static: bool):
    torch.manual_seed(0)
    model, x = DSelectK(10, 2, 4, 2, is_static, entropy=0.5), torch.randn(16, 10)
    output, penalty = model.forward_with_penalty(x)
    assert torch.equal(output.logits, model(x).logits)
    # At first all codes are about equally likely: 2 tasks, 2 selectors, log(4) nats each.
    assert penalty.item() == pytest.approx(0.5 * 4 * torch.tensor(4.0).log().item(), rel=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        penalty = model.forward_with_penalty(x)[1]
        penalty.backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert penalty < 1e-3
    gates = model(x).gates
    torch.testing.assert_close(gates.sum(-1), torch.ones(16, 2))
    assert ((gates > 1e-3).sum(-1) <= 2).all()


def test_a_model_without_the_penalty_has_none():
    assert not DSelectK(10, 2).has_penalty
    assert DSelectK(10, 2, entropy=0.1).has_penalty


def test_every_expert_gets_a_gradient_at_the_start():
    torch.manual_seed(0)
    model = DSelectK(10, 2, num_experts=5, expert_units=[4], activation="gelu")
    model(torch.randn(20, 10)).logits.sum().backward()
    assert (model.weight.grad[:, :20].unflatten(1, (5, 4)).abs().sum((0, 2)) > 0).all()


def test_edge_cases():
    one = DSelectK(10, 1, num_experts=1)
    torch.testing.assert_close(one(torch.randn(1, 10)).gates, torch.ones(1, 1, 1))
    Replicas([DSelectK(10, 2, entropy=0.1) for _ in range(2)])(torch.randn(3, 10))


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ({"num_selectors": 0}, "num_selectors=0: must be an integer of at least 1"),
        ({"gamma": 0}, "gamma=0: must be a finite number of at least 1e-06"),
        ({"entropy": -1}, "entropy=-1: must be a finite number of at least 0"),
    ],
)
def test_arguments(argument: dict, rule: str):
    with pytest.raises(ValueError, match=f"^{rule}"):
        DSelectK(10, 2, **argument)
