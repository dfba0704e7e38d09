import pytest
import torch
from conftest import assert_equal_with_gradients
from torch.nn.functional import linear

from mmoe import TensorFactorization
from mmoe.models.tensor_factorization import FactorizedLinear


def weight(layer: FactorizedLinear) -> torch.Tensor:
    """The full weights of all tasks, [T, I, O]."""
    return torch.einsum("pqr,ip,oq,tr->tio", layer.core, layer.inputs, layer.outputs, layer.tasks)


@pytest.mark.parametrize("units", [[6], [6, 4]])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_equals_the_full_weights_with_gradients(units: list[int], num_tasks: int):
    torch.manual_seed(0)
    model = TensorFactorization(10, num_tasks, units, rank=3, task_rank=2, activation="gelu")

    def looped(x):
        logits = []
        for t in range(num_tasks):
            h = x
            for layer in model.layers:
                factorized = isinstance(layer, FactorizedLinear)
                h = linear(h, weight(layer)[t].T, layer.bias[t]) if factorized else layer(h)
            logits.append(h)
        return (torch.cat(logits, dim=1),)

    assert_equal_with_gradients(model, looped)


def test_the_weights_have_low_rank_and_the_variance_of_linear():
    torch.manual_seed(0)
    layer = FactorizedLinear(num_tasks=6, in_features=300, out_features=200, rank=16, task_rank=2)
    w = weight(layer)
    assert torch.linalg.matrix_rank(w[0]).item() <= 16
    assert torch.linalg.matrix_rank(w.flatten(1)).item() <= 2
    assert w.std().item() == pytest.approx((3 * 300) ** -0.5, rel=0.25)


def test_arguments():
    with pytest.raises(ValueError, match=r"^rank=0: must be an integer of at least 1"):
        TensorFactorization(10, 2, rank=0)
