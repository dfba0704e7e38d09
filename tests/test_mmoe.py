import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer
from torch import Tensor

from mmoe import MMoE, OMoE

SHAPES = [
    {},
    {"num_experts": 1},
    {"num_tasks": 1},
    {"num_experts": 1, "num_tasks": 1, "tower_units": []},
    {"expert_units": [6, 5, 4], "gate_units": [3, 7], "tower_units": [5, 2], "activation": "gelu"},
    {"num_experts": 33, "num_tasks": 5, "gate_temperature": 2.5},
]


def make(method: type[MMoE] = MMoE, **options: object) -> MMoE:
    return method(**{"num_inputs": 10, "num_tasks": 2, "num_experts": 4, "expert_units": [6], **options})


def looped(model: MMoE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 6 and 7 of the paper, one expert, one gate and one tower at a time."""
    experts_width, gates_width = model.first_widths
    first = x @ model.weight + model.bias

    num_gates = 1 if isinstance(model, OMoE) else model.num_tasks
    e_width, g_width = experts_width // model.num_experts, gates_width // num_gates
    outputs = [
        layer_by_layer(model.experts, e, first[:, e * e_width : (e + 1) * e_width])
        for e in range(model.num_experts)
    ]
    logits, gates = [], []
    for t in range(model.num_tasks):
        g = min(t, num_gates - 1)
        start = experts_width + g * g_width
        gate = layer_by_layer(model.gates, g, first[:, start : start + g_width]) / model.gate_temperature
        weights = gate.exp() / gate.exp().sum(1, keepdim=True)
        mixed = sum(weights[:, e : e + 1] * outputs[e] for e in range(model.num_experts))
        logits.append(layer_by_layer(model.towers, t, mixed))
        gates.append(weights)
    return torch.cat(logits, dim=1), torch.stack(gates, dim=1)


@pytest.mark.parametrize("method", [MMoE, OMoE])
@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("batch", [1, 9])
def test_equals_a_plain_loop_with_gradients(method: type[MMoE], options: dict[str, object], batch: int):
    torch.manual_seed(0)
    model = make(method, **options)
    assert_equal_with_gradients(model, lambda x: looped(model, x), batch)


def test_one_gate_serves_all_tasks():
    gates = make(OMoE, num_tasks=3)(torch.randn(5, 10)).gates
    assert gates.shape == (5, 3, 4)
    assert torch.equal(gates[:, 0], gates[:, 2])


@pytest.mark.parametrize("options", SHAPES)
def test_shapes_and_gates_that_sum_to_one(options: dict[str, object]):
    model = make(**options)
    logits, gates = model(torch.randn(5, 10))
    assert logits.shape == (5, model.num_tasks)
    assert gates.shape == (5, model.num_tasks, model.num_experts)
    torch.testing.assert_close(gates.sum(-1), torch.ones(5, model.num_tasks))


def test_every_expert_gate_and_tower_gets_a_gradient():
    model = make(num_experts=8, tower_units=[8])
    model(torch.randn(64, 10)).logits.sum().backward()
    experts, gates = model.weight.grad.split(model.first_widths, dim=1)
    assert (experts.reshape(10, 8, -1).abs().sum((0, 2)) > 0).all()
    assert (gates.reshape(10, 2, 8).abs().sum(0) > 0).all()
    for tower in model.towers:
        if hasattr(tower, "weight"):
            assert (tower.weight.grad.abs().sum((1, 2)) > 0).all()


def test_initial_weights_differ_and_are_bounded_by_the_fan_in():
    model = make(num_inputs=400, num_experts=16)
    assert model.weight.abs().max() <= 400**-0.5
    assert model.weight.std().item() == pytest.approx((400 * 3) ** -0.5, rel=0.02)
    assert len({tuple(column.tolist()) for column in model.weight.T}) == model.weight.shape[1]


def test_a_high_temperature_makes_gates_even():
    x = torch.randn(50, 10) * 5
    torch.manual_seed(0)
    sharp = make(gate_temperature=0.1)(x).gates
    torch.manual_seed(0)
    even = make(gate_temperature=100.0)(x).gates
    assert sharp.max(-1).values.mean() > 0.9
    torch.testing.assert_close(even, torch.full_like(even, 0.25), atol=0.06, rtol=0)


def test_gate_dropout_renormalises_in_training_only():
    model = make(gate_dropout=0.3)
    x = torch.randn(4000, 10)
    with torch.no_grad():
        dropped, whole = model.train()(x).gates, model.eval()(x).gates
    assert (whole > 0).all()
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(dropped.sum(-1), torch.ones(4000, 2))
    kept = torch.where(dropped > 0, whole, 0)
    torch.testing.assert_close(dropped, kept / kept.sum(-1, keepdim=True))


def test_gate_dropout_never_drops_all_experts():
    gates = make(gate_dropout=0.99, num_experts=2).train()(torch.randn(500, 10)).gates
    assert gates.isfinite().all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(500, 2))


def test_dropout_applies_in_training_only():
    model = make(dropout=0.5)
    x = torch.randn(20, 10)
    assert not torch.equal(model.train()(x).logits, model(x).logits)
    assert torch.equal(model.eval()(x).logits, model(x).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts=0: must be an integer of at least 1"),
        ({"num_experts": 2.5}, "num_experts=2.5: must be an integer"),
        ({"num_tasks": 0}, "num_tasks=0: must be"),
        ({"expert_units": 16}, "expert_units=16: must be a list"),
        ({"dropout": "abc"}, "dropout=abc: must be a number in"),
        ({"expert_units": []}, r"expert_units=\[\]: must have the width"),
        ({"expert_units": [16, 0]}, r"expert_units=\[16, 0\]: must be a list"),
        ({"tower_units": [-1]}, r"tower_units=\[-1\]: must be a list"),
        ({"gate_temperature": 0.0}, "gate_temperature=0.0: must be a finite number"),
        ({"gate_dropout": 1.0}, "gate_dropout=1.0: must be a number in"),
        ({"dropout": 1.5}, "dropout=1.5: must be a number in"),
        ({"activation": "no"}, "activation=no: must be one of"),
    ],
)
def test_arguments_outside_their_range(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**options)
