"""Tasks may have several logits: those of each task follow those of the task before it."""

import pytest
import test_mmoe
import test_ple
import torch
from conftest import assert_equal_with_gradients, layer_by_layer
from torch import Tensor, nn

from mmoe import (
    ESMM,
    PLE,
    STEM,
    AdaTT,
    CrossStitch,
    DSelectK,
    L2Constrained,
    MMoE,
    OMoE,
    SharedBottom,
    SingleTask,
    TensorFactorization,
)
from mmoe.errors import ArgumentError
from mmoe.models.towers import TaskLogits

METHODS = [
    MMoE, OMoE, PLE, SharedBottom, SingleTask, L2Constrained, CrossStitch, TensorFactorization, DSelectK,
    AdaTT, STEM, ESMM,
]  # fmt: skip
OUTPUTS = [[1, 3, 2], [2, 2, 2], [1, 1, 1]]


def own(outputs: list[int], logits: Tensor) -> Tensor:
    """The logits that tasks need, of [B, T * W], one task at a time."""
    widest = max(outputs)
    return torch.cat([logits[:, t * widest :][:, :width] for t, width in enumerate(outputs)], dim=1)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_experts_and_towers_equal_a_plain_loop(outputs: list[int]):
    torch.manual_seed(0)
    for method in (MMoE, OMoE):
        model = method(10, 3, 4, [6], tower_units=[5], task_outputs=outputs)

        def looped(x: Tensor, model: MMoE = model) -> tuple[Tensor, Tensor]:
            logits, gates = test_mmoe.looped(model, x)
            return own(outputs, logits), gates

        assert_equal_with_gradients(model, looped)
    ple = PLE(10, 3, 2, 1, 2, [6], [4], activation="gelu", task_outputs=outputs)

    def looped_ple(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, gates = test_ple.looped(ple, x, 3, 1, 2)
        return own(outputs, logits), gates

    assert_equal_with_gradients(ple, looped_ple)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_separate_networks_equal_a_plain_loop(outputs: list[int]):
    model = SingleTask(10, 3, [6, 5], activation="gelu", task_outputs=outputs)

    def looped(x: Tensor) -> tuple[Tensor]:
        each = [layer_by_layer(model.layers, t, x)[:, :width] for t, width in enumerate(outputs)]
        return (torch.cat(each, dim=1),)

    assert_equal_with_gradients(model, looped)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_outputs_that_its_tasks_need(method: type[nn.Module], outputs: list[int]):
    torch.manual_seed(0)
    options = {"parents": [-1, -1, -1]} if method is ESMM else {}  # only single logits form a funnel
    model, last = method(10, 3, task_outputs=outputs, **options), []
    model.task_logits.register_forward_hook(lambda _, given, __: last.append(given[0]))
    logits, gates = model(torch.randn(7, 10))
    assert last[0].shape == (7, 3, max(outputs))
    assert torch.equal(logits, own(outputs, last[0].flatten(1)))
    assert gates.shape[:2] == (7, 3)
    logits[:, : outputs[0]].sum().backward()
    bias = [value.grad for name, value in model.named_parameters() if name.endswith("bias")][-1]
    reached = bias.reshape(3, max(outputs)) != 0
    assert reached.sum() == outputs[0]
    assert reached[0, : outputs[0]].all()


def test_one_output_each_is_the_default():
    torch.manual_seed(0)
    default = MMoE(10, 3)
    torch.manual_seed(0)
    same = MMoE(10, 3, task_outputs=[1, 1, 1])
    x = torch.randn(4, 10)
    assert torch.equal(default(x).logits, same(x).logits)
    assert default.state_dict().keys() == same.state_dict().keys()


def test_the_penalty_ignores_outputs_that_some_tasks_lack():
    model = L2Constrained(10, 2, [6], task_outputs=[1, 3])
    before = model.penalty()
    with torch.no_grad():
        model.layers[-1].weight[:, :, 1:] += 5
    assert torch.equal(model.penalty(), before)
    with torch.no_grad():
        model.layers[-1].weight[0, :, 0] += 5
    assert model.penalty() > before


@pytest.mark.parametrize("outputs", [[1], [1, 0], [1, 2.5], "12"])
def test_bad_numbers_of_outputs(outputs: object):
    with pytest.raises(ArgumentError, match=r"^task_outputs=.*: must"):
        TaskLogits(2, outputs)
