"""Sums of a weight's rows are the products that they stand for."""

import pytest
import torch
from conftest import config
from test_inputs import CODES, NUMERICS, SCHEMA
from torch import Tensor, nn

from mmoe.build import build, build_network
from mmoe.data.encode import Rows, split, take
from mmoe.data.schema import Categorical, Numeric, Schema
from mmoe.models.inputs import (
    Inputs,
    OneHot,
    PiecewiseLinear,
    PiecewiseLinearAndValues,
    Standardize,
    forbid_sums,
)
from mmoe.models.network import Network
from mmoe.models.replicas import Replicas
from mmoe.models.sparse import Entries, SparseInputs, linear
from mmoe.training.objective import Objective

# Bins of several groups, columns with and without frequent values, a mode that is not the first level.
WIDE = Schema(
    (Categorical("a", ("x", "y", "z"), "y"), Categorical("b", ("u", "v")), Categorical("c", ("w",), "w")),
    (
        Numeric("m", 2.0, 4.0, tuple(float(i) for i in range(24)), (0.0, 3.5, 22.0)),
        Numeric("n", -1.0, 0.5, (-3.0, 4.0)),
        Numeric("o", 0.0, 1.0, (0.0, 0.5, 9.0), (9.0,)),
    ),
    (),
)


@pytest.fixture(autouse=True)
def _few_rows_are_sums_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmoe.models.inputs.SPARSE_ROWS", 1)


def rows(count: int = 300) -> Rows:
    """Rows at, between and beyond the edges, with unseen levels (6)."""
    columns = [torch.randint(0, 3, (count,)), torch.randint(3, 5, (count,)), torch.full((count,), 5)]
    codes = torch.stack(columns, 1)
    codes = torch.where(torch.rand(count, 3) < 0.2, 6, codes).short()
    numerics = torch.stack(
        [torch.randint(-6, 54, (count,)) / 2, torch.randn(count) * 5, torch.randint(-1, 20, (count,)) / 2], 1
    )
    return Rows(codes, numerics, torch.randint(0, 2, (count, 2)).float())


def dense(inputs: Inputs, rows: Rows) -> Tensor:
    return inputs.dense(rows.codes, rows.numerics)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numeric", [Standardize, PiecewiseLinear, PiecewiseLinearAndValues])
def test_the_product_is_that_of_dense_inputs_with_gradients(numeric: type, dtype: torch.dtype):
    inputs = Inputs(WIDE, OneHot, numeric)
    some = rows()
    weight = torch.randn(inputs.num_outputs, 3, dtype=dtype, requires_grad=True)
    bias = torch.randn(3, dtype=dtype, requires_grad=True)
    x = inputs(some.codes, some.numerics)
    assert isinstance(x, SparseInputs)
    ours, theirs = linear(x, weight, bias), linear(dense(inputs, some).to(dtype), weight, bias)
    gradients = [torch.autograd.grad(z.square().mean(), [weight, bias]) for z in (ours, theirs)]
    error = 0.02 if dtype == torch.bfloat16 else 1e-6
    for first, second in zip((ours, *gradients[0]), (theirs, *gradients[1]), strict=True):
        assert first.dtype == second.dtype == dtype
        assert (first - second).norm() <= error * second.norm()


@pytest.mark.parametrize("modes", [True, False])
def test_most_frequent_levels_decide_nothing(modes: bool):
    columns = WIDE.categorical if modes else tuple(Categorical(c.name, c.levels) for c in WIDE.categorical)
    inputs = Inputs(Schema(columns, WIDE.numeric, ()))
    some = rows()
    weight, bias = torch.randn(inputs.num_outputs, 3), torch.randn(3)
    ours, theirs = (linear(x, weight, bias) for x in (inputs(*some[:2]), dense(inputs, some)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("missing", ["levels", "numbers", "rows with entries"])
def test_of_some_nothing_is_there(missing: str):
    some = rows(7)
    if missing == "levels":
        inputs, some = Inputs(Schema((), WIDE.numeric, ())), some._replace(codes=some.codes[:, :0])
        assert isinstance(inputs(*some[:2]), Tensor)
        return
    if missing == "numbers":
        inputs, some = Inputs(Schema(WIDE.categorical, (), ())), some._replace(numerics=some.numerics[:, :0])
    else:  # the most frequent levels, and the lowest edges: each row is in no state
        inputs = Inputs(WIDE)
        some = Rows(torch.tensor([[1, 3, 5]] * 7), torch.tensor([[0.0, -3.0, 0.0]] * 7), some.labels)
    weight, bias = torch.randn(inputs.num_outputs, 3, requires_grad=True), torch.randn(3)
    ours, theirs = (linear(x, weight, bias) for x in (inputs(*some[:2]), dense(inputs, some)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    first, second = (torch.autograd.grad(z.square().sum(), weight)[0] for z in (ours, theirs))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_an_encoder_of_a_subclass_is_asked_itself():
    class Log(Standardize):
        def forward(self, numerics: Tensor) -> Tensor:
            return super().forward(numerics.abs().log1p())

    inputs, some = Inputs(WIDE, OneHot, Log), rows()
    assert torch.equal(inputs(*some[:2]), dense(inputs, some))
    assert inputs.encode_once(some, 128) is some


def test_rounded_numbers_are_not_encoded():
    some = rows()
    inputs = Inputs(WIDE).bfloat16()
    assert isinstance(inputs(some.codes, some.numerics.bfloat16()), Tensor)


def test_batches_of_encoded_rows_are_those_of_the_rows():
    inputs, some = Inputs(WIDE), rows()
    encoded = inputs.encode_once(some, 128)
    index = torch.randperm(300)[:290]
    weight = torch.randn(inputs.num_outputs, 3, requires_grad=True)
    pairs = zip(split(take(some, index), 128, 2), split(take(encoded, index), 128, 2), strict=True)
    sizes = []
    for plain, batch in pairs:
        sizes.append(len(batch.labels))
        assert torch.equal(plain.labels, batch.labels)
        assert isinstance(batch.codes, Entries)
        found = []
        for x in (dense(inputs, plain), inputs(batch.codes, batch.numerics)):
            z = linear(x, weight, torch.zeros(3))
            found.append((z, *torch.autograd.grad(z.square().mean(), weight)))
        for first, second in zip(*found, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    assert sizes == [128, 162]


def test_rows_are_left_alone_where_sums_are_of_no_use():
    some = rows()
    assert Inputs(WIDE, dropout=0.5).encode_once(some, 128) is some  # each step drops other columns
    dense_ones = Inputs(WIDE)
    forbid_sums(dense_ones)
    assert dense_ones.encode_once(some, 128) is some


def test_few_rows_are_one_tensor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.models.inputs.SPARSE_ROWS", 5)
    inputs, some = Inputs(WIDE), rows(4)
    assert torch.equal(inputs(*some[:2]), dense(inputs, some))
    assert inputs.encode_once(some, 4) is some
    assert isinstance(inputs(*rows(5)[:2]), SparseInputs)


def test_a_gradient_reaches_numbers_that_want_one():
    inputs, some = Inputs(WIDE), rows()
    numerics = some.numerics.requires_grad_()
    inputs(some.codes, numerics).sum().backward()
    assert numerics.grad.abs().sum() > 0


def test_replicas_compiled_networks_and_foreign_models_have_dense_inputs():
    inputs = Inputs(SCHEMA)
    assert isinstance(inputs(CODES, NUMERICS), SparseInputs)
    x = torch.cat([inputs.categorical(CODES), inputs.numeric(NUMERICS)], dim=1)
    assert isinstance(Replicas([inputs, Inputs(SCHEMA)]).stacked(CODES, NUMERICS), Tensor)
    assert torch.equal(torch.compile(inputs, backend="eager")(CODES, NUMERICS), x)
    assert torch.equal(Network(inputs, nn.Identity())(CODES, NUMERICS), x)


class Dense(nn.Module):
    """The inputs of another module, as one tensor."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, codes: Tensor, numerics: Tensor) -> Tensor:
        return torch.cat([self.inputs.categorical(codes), self.inputs.numeric(numerics)], dim=1)


@pytest.mark.parametrize("model", ["mmoe", "ple", "single_task"])
def test_training_has_the_losses_of_dense_inputs(model: str):
    torch.manual_seed(0)
    data = build(config("experiment=smoke", "data.batch_size=128"), "data")
    losses = []
    for wrap in (lambda inputs: inputs, Dense):
        torch.manual_seed(1)
        network = build_network(config("experiment=smoke", f"model={model}"), data.schema)
        data.encode = None if wrap is Dense else network.inputs.encode_once
        batches = list(data.train_dataloader())
        assert isinstance(batches[0].codes, Entries) == (wrap is not Dense)
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
