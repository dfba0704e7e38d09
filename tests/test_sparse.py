"""Sums of a weight's rows are the products that they stand for."""

import pytest
import torch
from conftest import config
from test_inputs import CODES, NUMERICS, SCHEMA
from torch import Tensor, nn

from mmoe.build import build, build_network
from mmoe.models.inputs import Inputs
from mmoe.models.sparse import SparseInputs, input_product
from mmoe.objective import Objective


@pytest.fixture
def x() -> SparseInputs:
    sparse = Inputs(SCHEMA)(CODES, NUMERICS)
    assert isinstance(sparse, SparseInputs)
    return SparseInputs(sparse.codes, sparse.dense.double())


def test_the_product_is_that_of_dense_inputs_with_gradients(x: SparseInputs):
    dense = x.to_dense(11)
    assert dense.shape == (4, 11)
    weight = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = input_product(x, weight), input_product(dense, weight)
    torch.testing.assert_close(ours, theirs)
    first, second = (torch.autograd.grad(z.square().sum(), weight)[0] for z in (ours, theirs))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("own_rows", [False, True])
def test_the_product_of_replicas(x: SparseInputs, own_rows: bool):
    weight = torch.randn(2, 11, 3, dtype=torch.float64, requires_grad=True)
    rows = SparseInputs(*(torch.stack([t, t.flip(0)]) for t in x)) if own_rows else x
    in_dim = 0 if own_rows else None

    def product(codes: Tensor, dense: Tensor, weight: Tensor) -> Tensor:
        return input_product(SparseInputs(codes, dense), weight)

    product = torch.vmap(product, (in_dim, in_dim, 0))
    z = product(*rows, weight)
    for r in range(2):
        alone = SparseInputs(*(t[r] for t in rows)) if own_rows else x
        torch.testing.assert_close(z[r], input_product(alone.to_dense(11), weight[r]))
    each = [SparseInputs(*(t[r] for t in rows)) for r in range(2)] if own_rows else [x, x]
    dense = torch.stack([alone.to_dense(11) for alone in each])
    expected = torch.einsum("rbi,rio->rbo", dense, weight)
    gradients = [torch.autograd.grad(product.square().sum(), weight)[0] for product in (z, expected)]
    torch.testing.assert_close(*gradients)


class Dense(nn.Module):
    """The inputs of another module, as one tensor."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, codes: Tensor, numerics: Tensor) -> Tensor:
        return self.inputs(codes, numerics).to_dense(self.inputs.num_outputs)


def test_training_has_the_losses_of_dense_inputs():
    torch.manual_seed(0)
    data = build(config("experiment=smoke"), "data")
    batches = list(data.train_dataloader())
    losses = []
    for wrap in (lambda inputs: inputs, Dense):
        torch.manual_seed(1)
        network = build_network(config("experiment=smoke"), data.schema)
        network.inputs = wrap(network.inputs)
        objective = Objective(network, data.schema.tasks)
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
        losses.append([])
        for batch in (batches * 3)[:200]:
            loss = objective(*batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    assert len(losses[0]) == 200
    torch.testing.assert_close(*map(torch.stack, losses), rtol=0, atol=1e-5)
