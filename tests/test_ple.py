import pytest
import torch
from conftest import assert_equal_with_gradients, layer_by_layer
from torch import Tensor
from torch.nn.functional import linear

from mmoe import PLE


def looped(model: PLE, x: Tensor, tasks: int, own: int, shared: int) -> tuple[Tensor, Tensor]:
    """Section 4 of the paper, one source, one expert and one gate at a time."""
    sources = [x] * (tasks + 1)
    for number, level in enumerate(model.levels):
        groups, e = [], 0
        for source in range(tasks + 1):
            count = own if source < tasks else shared
            groups.append([layer_by_layer(level.experts, e + i, sources[source]) for i in range(count)])
            e += count
        weight, bias = level.gates.by_layer()
        last = number == len(model.levels) - 1
        mixed, gates = [], []
        for gate in range(tasks if last else tasks + 1):
            used = [s for s in range(tasks + 1) if gate == tasks or s in (gate, tasks)]
            logits = linear(sources[gate], weight[gate].T, bias[gate])
            places = [own * s + i for s in used for i in range(own if s < tasks else shared)]
            share = logits[:, places].softmax(1)
            experts = [expert for s in used for expert in groups[s]]
            mixed.append(sum(share[:, i : i + 1] * expert for i, expert in enumerate(experts)))
            gates.append(torch.zeros_like(logits).index_copy(1, torch.tensor(places), share))
        sources = mixed
    logits = [layer_by_layer(model.towers, t, sources[t]) for t in range(tasks)]
    return torch.cat(logits, dim=1), torch.stack(gates, dim=1)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("tasks", "own", "shared"), [(2, 3, 2), (1, 1, 1), (3, 1, 4)])
def test_equals_a_plain_loop_with_gradients(levels: int, tasks: int, own: int, shared: int):
    torch.manual_seed(0)
    model = PLE(10, tasks, levels, own, shared, [6, 5], [4], activation="gelu")
    assert_equal_with_gradients(model, lambda x: looped(model, x, tasks, own, shared))


def test_a_task_uses_its_own_and_the_shared_experts():
    gates = PLE(10, 2, num_levels=2, task_experts=3, shared_experts=2)(torch.randn(7, 10)).gates
    assert gates.shape == (7, 2, 8)
    torch.testing.assert_close(gates.sum(-1), torch.ones(7, 2))
    assert (gates[:, 0, 3:6] == 0).all()
    assert (gates[:, 1, :3] == 0).all()
    assert (gates[:, :, 6:] > 0).all()


def test_arguments():
    for name in ("num_levels", "task_experts", "shared_experts"):
        with pytest.raises(ValueError, match=f"^{name}=0: must be an integer of at least 1"):
            PLE(10, 2, **{name: 0})
