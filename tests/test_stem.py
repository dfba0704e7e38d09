import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer
from torch import Tensor
from torch.nn.functional import linear

from mmoe import STEM


def looped(model: STEM, x: Tensor, tasks: int, own: int, shared: int) -> tuple[Tensor, Tensor]:
    """One embedding, one expert and one gate at a time, with the paper's stopped gradients."""
    weight, bias = model.embeddings.by_layer()
    embedded = [linear(x, weight[s].T, bias[s]) for s in range(tasks + 1)]
    source = [s for s in range(tasks) for _ in range(own)] + [tasks] * shared
    experts = [layer_by_layer(model.experts, e, embedded[s]) for e, s in enumerate(source)]
    weight, bias = model.gates.by_layer()
    logits, gates = [], []
    for t in range(tasks):
        gate = linear(embedded[t] + embedded[tasks], weight[t].T, bias[t]).softmax(1)
        used = [f if s in (t, tasks) else f.detach() for f, s in zip(experts, source, strict=True)]
        mixed = sum(gate[:, e : e + 1] * expert for e, expert in enumerate(used))
        logits.append(layer_by_layer(model.towers, t, mixed))
        gates.append(gate)
    return torch.cat(logits, dim=1), torch.stack(gates, dim=1)


@pytest.mark.parametrize(("tasks", "own", "shared"), [(2, 3, 2), (1, 1, 1), (3, 1, 4)])
def test_equals_a_plain_loop_with_gradients(tasks: int, own: int, shared: int):
    torch.manual_seed(0)
    model = STEM(10, tasks, 7, own, shared, [6, 5], [4], activation="gelu")
    assert_equal_with_gradients(model, lambda x: looped(model, x, tasks, own, shared))


def test_a_task_trains_its_own_and_the_shared_embeddings_and_experts():
    torch.manual_seed(0)
    model = STEM(10, 2, 4, task_experts=2, shared_experts=1, activation="gelu")
    logits, gates = model(torch.randn(20, 10))
    assert (gates > 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(20, 2))
    logits[:, 0].sum().backward()
    reached = model.experts[0].weight.grad.abs().sum((1, 2)) > 0
    assert reached.tolist() == [True, True, False, False, True]
    embeddings = model.embeddings.weight.grad.unflatten(1, (3, 4)).abs().sum((0, 2)) > 0
    assert embeddings.tolist() == [True, False, True]


def test_a_task_sees_the_experts_of_the_others():
    torch.manual_seed(0)
    model, x = STEM(10, 2, task_experts=1), torch.randn(5, 10)
    before = model(x).logits
    with torch.no_grad():
        model.experts[0].bias[1] += 1
    assert not torch.equal(model(x).logits[:, 0], before[:, 0])


def test_one_row_one_task_and_one_expert_of_each_kind():
    logits, gates = STEM(10, 1, task_experts=1, shared_experts=1)(torch.randn(1, 10))
    assert (logits.shape, gates.shape) == ((1, 1), (1, 1, 2))


def test_arguments():
    for name in ("embedding_units", "task_experts", "shared_experts"):
        with pytest.raises(ValueError, match=f"^{name}=0: must be an integer of at least 1"):
            STEM(10, 2, **{name: 0})
