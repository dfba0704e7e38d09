import math

import pytest
import torch
from torch.nn.functional import linear

from mmoe.models.gating import mix, softmax
from mmoe.models.layers import ACTIVATIONS, Dropout, StackedLinear, activation_layers


def test_equals_a_loop_of_linear_layers():
    layer = StackedLinear(3, 5, 4)
    x = torch.randn(7, 3, 5)
    expected = torch.stack([linear(x[:, n], layer.weight[n].T, layer.bias[n]) for n in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_each_layer_is_initialised_like_a_linear_layer():
    layer = StackedLinear(64, 25, 30)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= 1 / math.sqrt(25)
        assert parameter.std().item() == pytest.approx(1 / math.sqrt(25 * 3), rel=0.05)
    assert len({tuple(weight.flatten().tolist()) for weight in layer.weight}) == 64


def test_activations_by_name():
    for name in ACTIVATIONS:
        assert len(activation_layers(name, 0.0)) == 1
    assert activation_layers("relu", 0.5)[1].p == 0.5
    with pytest.raises(ValueError, match=r"^activation=swish: must be one of relu, gelu"):
        activation_layers("swish", 0.0)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"^dropout={dropout}: must be a number in"):
            activation_layers("relu", dropout)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dropout_keeps_the_expected_value(dtype: torch.dtype):
    torch.manual_seed(0)
    x, layer = torch.full((1000, 6, 30), 3.0, dtype=dtype, requires_grad=True), Dropout(0.4)
    dropped = layer(x)
    assert dropped.dtype == dtype
    is_kept = dropped != 0
    assert is_kept.float().mean().item() == pytest.approx(0.6, abs=0.01)
    assert is_kept.float().mean(0).std() > 0.01  # units are dropped independently
    torch.testing.assert_close(dropped[is_kept], (x / 0.6)[is_kept])
    dropped.sum().backward()
    assert torch.equal(x.grad != 0, is_kept)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("rows", [255, 256])
@pytest.mark.parametrize("shape", [(2, 8, 16), (1, 3, 4), (7, 8, 16)])  # tasks, experts, width
def test_mix_equals_the_einsum_with_gradients(rows: int, shape: tuple[int, int, int]):
    tasks, num_experts, width = shape
    logits = torch.randn(rows, tasks, num_experts, dtype=torch.float64, requires_grad=True)
    experts = torch.randn(rows, num_experts, width, dtype=torch.float64, requires_grad=True)
    ours = mix(softmax(logits), experts)
    theirs = torch.einsum("bte,beh->bth", logits.softmax(-1), experts)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    for pair in zip(
        *(torch.autograd.grad(z, [logits, experts], gradient) for z in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(*pair)
