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
GROUPS = [0, 0, 0, 1, 1, 2, 3, 3, -1, -1]


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


def first_weights(model: MMoE) -> tuple[Tensor, Tensor]:
    """The weights that the experts [I, E*F] and the gates [I, T*G] apply to the inputs."""
    experts, gates = model.weight.detach().split(model.first_widths, dim=1)
    return experts if model.views is None else model.views(experts).detach(), gates


def test_each_unit_sees_its_own_share_of_the_columns():
    torch.manual_seed(0)
    model = make(num_experts=500, column_share=0.3, input_groups=GROUPS)
    experts, gates = first_weights(model)
    assert (gates != 0).all()
    assert (experts[8:] != 0).all()  # inputs without a column
    seen = experts[:8] != 0
    share = 0.3 + 0.7**4 / 4  # a unit that would see none of the four columns sees one
    for column in range(4):
        own = seen[[c == column for c in GROUPS[:8]]]
        assert torch.equal(own.all(0), own.any(0))  # a unit sees all inputs of a column, or none
        assert own.float().mean() == pytest.approx(share, abs=0.03)
    assert len(seen.T.unique(dim=0)) == 15  # all combinations of columns but the empty one
    assert experts.square().mean() == pytest.approx((8 * share + 2) / 0.3 / 10 / 30, rel=0.05)


def test_a_single_column_is_seen_by_every_unit():
    model = MMoE(1, 2, column_share=0.01)
    assert (first_weights(model)[0] != 0).all()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_hidden_columns_stay_hidden_and_others_learn(optimizer: type[torch.optim.Optimizer]):
    torch.manual_seed(0)
    model = make(column_share=0.5, input_groups=GROUPS)
    before, _ = first_weights(model)
    steps = optimizer(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        steps.zero_grad()
        model.train()(torch.randn(64, 10)).logits.square().sum().backward()
        steps.step()
    after, _ = first_weights(model)
    assert torch.equal(after == 0, before == 0)
    assert ((before == 0) | (after != before)).all()
    with torch.no_grad():
        model.weight.fill_(1.0)  # as weights from another run would
    assert torch.equal(first_weights(model)[0] == 0, before == 0)
    x = torch.randn(5, 10)
    torch.testing.assert_close(model.train()(x).logits, model.eval()(x).logits)


def test_without_columns_each_input_is_one_and_a_share_of_1_hides_none():
    torch.manual_seed(0)
    assert (first_weights(make(column_share=0.5))[0] == 0).any()
    torch.manual_seed(0)
    whole = make(column_share=1.0, input_groups=GROUPS)
    torch.manual_seed(0)
    assert torch.equal(whole.weight, make().weight)


def test_scales_multiply_the_inputs_of_a_column_for_one_expert():
    torch.manual_seed(0)
    model, x = make(column_scale_rate=6, input_groups=GROUPS).eval(), torch.randn(9, 10)
    torch.manual_seed(0)
    plain = make().eval()
    torch.testing.assert_close(model(x), plain(x))  # scales start at 1
    assert model.views.scales.shape == (5, 4)  # of 4 columns and the inputs without one, for 4 experts
    with torch.no_grad():
        model.views.scales.normal_()
        names = sorted(set(GROUPS))
        for i, group in enumerate(GROUPS):
            by_expert = plain.weight[i, : plain.first_widths[0]].view(4, -1)
            by_expert *= 1 + 6 * model.views.scales[names.index(group)][:, None]
    torch.testing.assert_close(model(x), plain(x))
    model.train()(x).logits.square().sum().backward()
    assert (model.views.scales.grad != 0).all()


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
        ({"column_share": 0}, "column_share=0: must be a finite number"),
        ({"column_share": 1.5}, "column_share=1.5: must be at most 1"),
        ({"column_share": 0.5, "input_groups": [0]}, "input_groups: must have 10 integers, has 1"),
        ({"column_share": 0.5, "input_groups": [0.5] * 10}, "input_groups: must be a list of integers"),
        ({"column_scale_rate": -1}, "column_scale_rate=-1: must be a finite number of at least 0"),
        ({"gate_dropout": 1.0}, "gate_dropout=1.0: must be a number in"),
        ({"dropout": 1.5}, "dropout=1.5: must be a number in"),
        ({"activation": "no"}, "activation=no: must be one of"),
    ],
)
def test_arguments_outside_their_range(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**options)
