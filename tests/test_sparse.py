"""Sums of a weight's rows are the products that they stand for."""

import pytest
import torch
from conftest import config
from test_inputs import CODES, NUMERICS, SCHEMA
from torch import Tensor, nn

from mmoe.build import build, build_network
from mmoe.models.inputs import Inputs, PiecewiseLinear
from mmoe.models.replicas import Replicas
from mmoe.models.sparse import SparseInputs, linear
from mmoe.objective import Objective

BIAS = torch.randn(3, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small_products_are_sums_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmoe.models.sparse.SPARSE_SIZE", 1)


@pytest.fixture
def x() -> SparseInputs:
    return SparseInputs(CODES, PiecewiseLinear(SCHEMA)(NUMERICS).double())


def test_the_product_is_that_of_dense_inputs_with_gradients(x: SparseInputs):
    dense = x.to_dense(11)
    assert dense.shape == (4, 11)
    weight = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = linear(x, weight, BIAS), linear(dense, weight, BIAS)
    torch.testing.assert_close(theirs, torch.einsum("bi,io->bo", dense, weight) + BIAS)
    torch.testing.assert_close(ours, theirs)
    first, second = (torch.autograd.grad(z.square().sum(), weight)[0] for z in (ours, theirs))
    torch.testing.assert_close(first, second)


def test_a_gradient_reaches_the_dense_inputs_too(x: SparseInputs):
    weight = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    dense = x.dense.requires_grad_()
    ours, theirs = (linear(rows, weight, BIAS) for rows in (x, x.to_dense(11)))
    for first, second in zip(
        *(torch.autograd.grad(z.square().sum(), [dense, weight]) for z in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(first, second)


def test_many_rows_go_through_the_gradient_in_parts(x: SparseInputs, monkeypatch: pytest.MonkeyPatch):
    weight = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(linear(x.to_dense(11), weight, BIAS).square().sum(), weight)
    monkeypatch.setattr("mmoe.models.sparse.CHUNK", 3)  # of 4 rows
    found = torch.autograd.grad(linear(x, weight, BIAS).square().sum(), weight)
    torch.testing.assert_close(found, expected)


def test_small_products_are_products(x: SparseInputs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.models.sparse.SPARSE_SIZE", 13)  # 4 rows, 3 outputs
    weight = torch.randn(11, 3, dtype=torch.float64)
    monkeypatch.setattr("mmoe.models.sparse._SparseProduct", None)
    torch.testing.assert_close(linear(x, weight, BIAS), x.to_dense(11) @ weight + BIAS)


def test_replicas_and_compiled_networks_have_dense_inputs():
    inputs = Inputs(SCHEMA)
    assert isinstance(inputs(CODES, NUMERICS), SparseInputs)
    assert isinstance(Replicas([inputs, Inputs(SCHEMA)]).stacked(CODES, NUMERICS), Tensor)
    x = torch.compile(inputs, backend="eager")(CODES, NUMERICS)
    assert torch.equal(x, inputs(CODES, NUMERICS).to_dense(11))


class Dense(nn.Module):
    """The inputs of another module, as one tensor."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, codes: Tensor, numerics: Tensor) -> Tensor:
        return torch.cat([self.inputs.categorical(codes), self.inputs.numeric(numerics)], dim=1)


def test_training_has_the_losses_of_dense_inputs():
    torch.manual_seed(0)
    data = build(config("experiment=smoke", "data.batch_size=128"), "data")
    batches = list(data.train_dataloader())
    losses = []
    for wrap in (lambda inputs: inputs, Dense):
        torch.manual_seed(1)
        network = build_network(config("experiment=smoke"), data.schema)
        network.inputs = wrap(network.inputs)
        objective = Objective(network, data.schema.tasks)
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
        losses.append([])
        for batch in (batches * 5)[:200]:
            loss = objective(*batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    assert len(losses[0]) == 200
    torch.testing.assert_close(*map(torch.stack, losses), rtol=0, atol=1e-5)
