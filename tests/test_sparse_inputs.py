"""Sparse inputs give the outputs and gradients of dense ones."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import config
from test_inputs import ENCODERS, LEVELS, NUMBERS, SCHEMA
from torch import Tensor, nn

from mmoe.build import build
from mmoe.data.batch import Batch, split, take
from mmoe.data.columns import Categorical, Numeric
from mmoe.data.loader import RowLoader
from mmoe.data.schema import Schema
from mmoe.models.encoders import (
    LevelEmbedding,
    OneHot,
    Standardize,
)
from mmoe.models.inputs import Inputs
from mmoe.models.network import Network
from mmoe.models.replicas import Replicas
from mmoe.models.single_task import SingleTask
from mmoe.models.sparse_inputs import SparseInputs, linear
from mmoe.training.objective import Objective
from mmoe.training.optimizers import RowAdam, build_optimizer
from mmoe.training.preparation import build_network

# A mode that is not the first level, several groups of bins, columns with and without frequent values.
WIDE = Schema(
    (Categorical("a", ("x", "y", "z"), 1), Categorical("b", ("u", "v")), Categorical("c", ("w",), 0)),
    (
        Numeric("m", 2.0, 4.0, tuple(float(i) for i in range(24)), (0.0, 3.5, 22.0)),
        Numeric("n", -1.0, 0.5, (-3.0, 4.0)),
        Numeric("o", 0.0, 1.0, (0.0, 0.5, 9.0), (9.0,)),
    ),
    (),
)


def rows(count: int = 300) -> Batch:
    """Numbers at, between and beyond the edges, and unseen levels (6)."""
    columns = [torch.randint(0, 3, (count,)), torch.randint(3, 5, (count,)), torch.full((count,), 5)]
    levels = torch.stack(columns, 1)
    levels = torch.where(torch.rand(count, 3) < 0.2, 6, levels).short()
    numbers = torch.stack(
        [torch.randint(-6, 54, (count,)) / 2, torch.randn(count) * 5, torch.randint(-1, 20, (count,)) / 2], 1
    )
    return Batch(levels, numbers, torch.randint(0, 2, (count, 2)).float())


def layer(x: Tensor | SparseInputs, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Outputs of a linear layer, and the gradients of its weight and bias."""
    generator = torch.Generator().manual_seed(0)
    num_inputs = x.shape[1] if isinstance(x, Tensor) else x.basis.width
    if isinstance(x, SparseInputs) and x.dense is not None:
        num_inputs += x.dense.shape[1]
    weight = torch.randn(num_inputs, 3, dtype=dtype, generator=generator).requires_grad_()
    bias = torch.randn(3, dtype=dtype, generator=generator).requires_grad_()
    z = linear(x if isinstance(x, SparseInputs) else x.to(dtype), weight, bias)
    return [z, *torch.autograd.grad(z.square().mean(), [weight, bias])]


def assert_equal(x: Tensor | SparseInputs, dense: Tensor, dtype: torch.dtype = torch.float32) -> None:
    error = 0.02 if dtype == torch.bfloat16 else 1e-6
    for ours, theirs in zip(layer(x, dtype), layer(dense, dtype), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        finite = theirs.isfinite()
        assert (ours[finite] - theirs[finite]).norm() <= error * theirs[finite].norm()


@pytest.fixture
def any_batch_is_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmoe.models.inputs.MIN_SPARSE_ROWS", 1)


@pytest.mark.parametrize("count", [1, 63, 64, 1000])
@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("categorical", [OneHot, partial(LevelEmbedding, size=2)])
@pytest.mark.parametrize("extreme", [-1e6, torch.nan, torch.inf, -torch.inf])
def test_inputs_give_what_the_dense_reference_gives(categorical, numeric, count: int, extreme: float):
    inputs, some = Inputs(WIDE, categorical, numeric), rows(count)
    some.numbers[0, 1] = extreme
    x, dense = inputs(*some[:2], allow_sparse=True), inputs.dense(*some[:2])
    is_sparse = count >= 64 and categorical is OneHot and extreme == -1e6
    assert isinstance(x, SparseInputs) == is_sparse
    assert_equal(x, dense)
    encoded = inputs.encode_rows(some, count)
    assert (encoded.sparse is not None) == is_sparse
    assert_equal(inputs(encoded.levels, encoded.numbers, encoded.sparse, allow_sparse=True), dense)


@pytest.mark.parametrize("modes", [True, False])
def test_one_hot_levels_with_a_scale(modes: bool):
    columns = WIDE.categorical if modes else tuple(Categorical(c.name, c.levels) for c in WIDE.categorical)
    inputs, some = Inputs(Schema(columns, WIDE.numeric, ()), partial(OneHot, scale=0.5)), rows(300)
    x, dense = inputs(*some[:2], allow_sparse=True), inputs.dense(*some[:2])
    assert isinstance(x, SparseInputs)
    assert dense[:, : inputs.categorical.num_outputs].unique().tolist() == [0.0, 0.5]
    assert_equal(x, dense)
    encoded = inputs.encode_rows(some, 300)
    assert_equal(inputs(encoded.levels, encoded.numbers, encoded.sparse, allow_sparse=True), dense)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("modes", [True, False])
@pytest.mark.parametrize("count", [1, 300])
def test_types_and_frequent_levels(
    numeric: type, dtype: torch.dtype, modes: bool, count: int, any_batch_is_sparse: None
):
    columns = WIDE.categorical if modes else tuple(Categorical(c.name, c.levels) for c in WIDE.categorical)
    inputs, some = Inputs(Schema(columns, WIDE.numeric, ()), OneHot, numeric), rows(count)
    x = inputs(*some[:2], allow_sparse=True)
    assert isinstance(x, SparseInputs)
    assert_equal(x, inputs.dense(*some[:2]), dtype)


def test_without_columns_or_entries(any_batch_is_sparse: None):
    some = rows(7)
    numbers_alone = some.levels[:, :0], some.numbers
    assert isinstance(Inputs(Schema((), WIDE.numeric, ()))(*numbers_alone, allow_sparse=True), Tensor)
    inputs = Inputs(Schema(WIDE.categorical, (), ()))
    assert_equal(
        inputs(some.levels, some.numbers[:, :0], allow_sparse=True),
        inputs.dense(some.levels, some.numbers[:, :0]),
    )
    # The most frequent levels, and the lowest edges: no coefficient differs from 0.
    inputs, zeros = Inputs(WIDE), (torch.tensor([[1, 3, 5]] * 7), torch.tensor([[0.0, -3.0, 0.0]] * 7))
    x = inputs(*zeros, allow_sparse=True)
    assert not len(x.coefficients.values)
    assert_equal(x, inputs.dense(*zeros))


def test_batches_of_encoded_rows():
    inputs, some = Inputs(WIDE), rows()
    encoded = inputs.encode_rows(some, 128)
    index = torch.randperm(300)[:290]
    pairs = zip(split(take(some, index), 128, 2), split(take(encoded, index), 128, 2), strict=True)
    sizes = []
    for plain, batch in pairs:
        sizes.append(len(batch.labels))
        assert all(torch.equal(a, b) for a, b in zip(plain[:3], batch[:3], strict=True))
        x = inputs(batch.levels, batch.numbers, batch.sparse, allow_sparse=True)
        assert x.coefficients is batch.sparse
        assert_equal(x, inputs.dense(*plain[:2]))
        parts = (batch.sparse, batch.sparse.transposed)
        forth, back = (part.to_scipy().toarray() for part in parts)
        assert (forth == back.T).all()
    assert sizes == [128, 162]


def test_rows_that_are_not_encoded():
    class Log(Standardize):
        def forward(self, numbers: Tensor) -> Tensor:
            return super().forward(numbers.abs().log1p())

    some = rows()
    others = [Inputs(WIDE, dropout=0.5), Inputs(WIDE).bfloat16(), Inputs(WIDE, numeric=Log)]
    for inputs in others:
        assert inputs.encode_rows(some, 128) is some
        assert isinstance(inputs(*some[:2], allow_sparse=True), Tensor)
    assert Inputs(WIDE).encode_rows(some, 63) is some
    bytes_ = Schema((Categorical("a", tuple(map(str, range(200)))),), (), ())  # more than int8 can count
    few = Batch(torch.zeros(64, 1, dtype=torch.int8), torch.empty(64, 0), torch.zeros(64, 1))
    assert Inputs(bytes_).encode_rows(few, 64) is few


def test_a_gradient_reaches_numbers_that_require_one():
    inputs, some = Inputs(WIDE), rows()
    numbers = some.numbers.requires_grad_()
    inputs(some.levels, numbers, allow_sparse=True).sum().backward()
    assert numbers.grad.abs().sum() > 0


def test_compiled_networks_and_other_models_have_dense_inputs(any_batch_is_sparse: None):
    class TakesSparse(nn.Identity):
        takes_sparse_inputs = True

    inputs = Inputs(SCHEMA)
    network = Network(inputs, TakesSparse())
    assert isinstance(network(LEVELS, NUMBERS), SparseInputs)
    x = inputs.dense(LEVELS, NUMBERS)
    assert torch.equal(torch.compile(network, backend="eager")(LEVELS, NUMBERS), x)
    assert torch.equal(inputs(LEVELS, NUMBERS), x)

    class OwnForward(Inputs):
        def forward(self, levels: Tensor, numbers: Tensor) -> Tensor:
            return super().forward(levels, numbers)

    others = (
        Network(inputs, nn.Identity()),
        Network(inputs, TakesSparse(), allow_sparse=False),
        Network(OwnForward(SCHEMA), TakesSparse()),
    )
    for dense in others:
        assert torch.equal(dense(LEVELS, NUMBERS), x)
        assert dense.encode_rows(some := rows(), 128) is some


@pytest.mark.parametrize("model", ["mmoe", "ple", "single_task", "dselect_k", "adatt", "stem"])
def test_training_has_the_losses_of_dense_inputs(model: str):
    data = build(config("experiment=smoke", "data.batch_size=128"), "data")
    losses = []
    for is_sparse in (True, False):
        torch.manual_seed(1)
        network = build_network(config("experiment=smoke", f"model={model}"), data.schema)
        network = Network(network.inputs, network.model, allow_sparse=is_sparse)
        loader = RowLoader(network.encode_rows(data.dataset.splits["train"], 128), 128, 0)
        objective = Objective(network, data.schema.tasks)
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
        losses.append([])
        for batch in (list(loader) * 5)[:200]:
            assert (batch.sparse is not None) == is_sparse
            loss = objective(*batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    assert len(losses[0]) == 200
    torch.testing.assert_close(*map(torch.stack, losses), rtol=0, atol=1e-5)


# Missing numbers, several levels in a row, an empty column, and learned vectors.
MIXED = Schema(
    (
        Categorical("a", ("x", "y"), 2, has_missing=True),
        Categorical("empty", ()),
        Categorical("m", ("p", "q", "r"), is_multi=True, max_values=2),
        Categorical("v", tuple("abcde"), size=3, has_rare=True),
        Categorical("w", ("s", "t"), size=2, is_multi=True, max_values=3),
    ),
    (Numeric("o", 0.0, 1.0, (0.0, 0.5, 9.0), (9.0,)), Numeric("n", 0.0, 1.0, (0.0, 1.0), has_missing=True)),
    (),
)


def mixed_rows(count: int = 300) -> Batch:
    """Codes of all columns, unseen ones (14), and missing numbers in the column that may have them."""
    lows, highs = [0, 14, 3, 3, 6, 12, 12, 12], [3, 15, 6, 6, 12, 14, 14, 14]
    levels = torch.stack([torch.randint(a, b, (count,)) for a, b in zip(lows, highs, strict=True)], 1)
    levels = torch.where(torch.rand(levels.shape) < 0.2, 14, levels)
    levels[:, 3] = torch.where(levels[:, 3] == levels[:, 2], 14, levels[:, 3])  # a level counts once
    numbers = torch.randn(count, 2).abs()
    numbers[torch.rand(count) < 0.3, 1] = torch.nan
    return Batch(levels.short(), numbers, torch.zeros(count, 1))


def with_encodings(schema: Schema, *encodings: str) -> Schema:
    """The schema with these encodings of its numeric columns."""
    numeric = [replace(c, encoding=e) for c, e in zip(schema.numeric, encodings, strict=True)]
    return replace(schema, numeric=tuple(numeric))


@pytest.mark.parametrize("numeric", ENCODERS)
def test_encodings_of_single_columns_give_the_same_inputs(numeric: type, any_batch_is_sparse: None):
    schema, batch = with_encodings(WIDE, "piecewise_linear_and_values", "", "standard"), rows()
    inputs = Inputs(schema, numeric=numeric)
    dense = inputs.dense(batch.levels.long(), batch.numbers)
    assert dense.shape[1] == inputs.num_outputs
    x = inputs(batch.levels, batch.numbers, allow_sparse=True)
    assert isinstance(x, SparseInputs)
    assert_equal(x, dense)


@pytest.mark.parametrize("encodings", [("", ""), ("min_max", "unscaled"), ("", "piecewise_linear")])
@pytest.mark.parametrize("numeric", ENCODERS)
def test_columns_of_every_kind_give_the_same_inputs(
    numeric: type, encodings: tuple[str, str], any_batch_is_sparse: None
):
    inputs, batch = Inputs(with_encodings(MIXED, *encodings), numeric=numeric), mixed_rows()
    x = inputs(batch.levels, batch.numbers, allow_sparse=True)
    dense = inputs.dense(batch.levels.long(), batch.numbers)
    assert isinstance(x, SparseInputs)
    assert dense.isfinite().all()
    assert dense.shape[1] == inputs.num_outputs == len(inputs.column)
    assert_equal(x, dense)
    encoded = inputs.encode_rows(batch, 64)
    assert_equal(inputs(encoded.levels, encoded.numbers, encoded.sparse, allow_sparse=True), dense)


def test_replicas_with_learned_vectors_give_what_each_network_gives():
    batch = mixed_rows()
    networks = [Network(Inputs(MIXED), SingleTask(Inputs(MIXED).num_outputs, 2)) for _ in range(3)]
    encoded = networks[0].inputs.encode_rows(batch, 64)
    rows = encoded.levels, encoded.numbers, encoded.sparse
    assert encoded.sparse is not None
    together = Replicas(networks)
    logits = together(*rows).logits
    logits.square().sum().backward()
    stacked = together.parameters_by_name()
    for r, network in enumerate(networks):
        own = network(batch.levels, batch.numbers).logits
        torch.testing.assert_close(logits[r], own)
        own.square().sum().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(stacked[name].grad[r], parameter.grad)


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_replicas_may_share_a_weight_or_a_bias(shared: str):
    class Layer(nn.Module):
        def __init__(self, inputs: Inputs) -> None:
            super().__init__()
            self.inputs = inputs
            self.weight = nn.Parameter(torch.randn(inputs.num_outputs, 2))
            self.bias = nn.Parameter(torch.randn(2))
            same = torch.ones_like(getattr(self, shared))
            delattr(self, shared)
            self.register_buffer(shared, same)  # equal in all replicas, so they share it

        def forward(self, *rows: Any) -> Tensor:
            return linear(self.inputs(*rows, allow_sparse=True), self.weight, self.bias)

    batch, layers = mixed_rows(), [Layer(Inputs(MIXED)) for _ in range(3)]
    encoded = layers[0].inputs.encode_rows(batch, 64)
    together = Replicas(layers)(encoded.levels, encoded.numbers, encoded.sparse)
    for r, layer in enumerate(layers):
        torch.testing.assert_close(together[r], layer(batch.levels, batch.numbers))


def test_each_kind_of_column_equals_a_plain_loop():
    inputs, batch = Inputs(MIXED, numeric=Standardize), mixed_rows(50)
    x = inputs.dense(batch.levels.long(), batch.numbers)
    tables = [table.weight for table in inputs.embeddings.tables]
    for row, codes, numbers in zip(x, batch.levels.tolist(), batch.numbers, strict=True):
        one_hot = torch.zeros(6)
        for code in codes[:4]:
            if code < 6:
                one_hot[code] = 1
        v = tables[0][codes[4] - 6] if codes[4] < 14 else torch.zeros(3)
        given = [tables[1][code - 12] for code in codes[5:] if code < 14]
        w = torch.stack(given).mean(0) if given else torch.zeros(2)
        expected = torch.cat([one_hot, numbers.nan_to_num(0.0), numbers[1:].isnan().float(), v, w])
        torch.testing.assert_close(row, expected)


def test_a_missing_number_without_an_input_of_its_own_gives_zeros():
    inputs, batch = Inputs(MIXED), mixed_rows(4)
    numbers = batch.numbers.clone()
    numbers[:, 0] = torch.nan
    x = inputs(batch.levels, numbers, allow_sparse=True)
    assert x.isfinite().all()
    assert (x[:, inputs.column == len(MIXED.categorical)] == 0).all()


def test_large_tables_have_sparse_gradients_and_train_like_dense_ones():
    levels = tuple(f"{i:05d}" for i in range(5000))
    inputs = Inputs(Schema((Categorical("id", levels, size=4),), (), ()))
    (table,) = inputs.embeddings.tables
    batch = torch.tensor([[3], [3], [4999], [5000]])
    inputs(batch, torch.zeros(4, 0)).sum().backward()
    assert table.weight.grad.is_sparse
    assert table.weight.grad.coalesce().indices().tolist() == [[3, 4999]]  # the unseen level has none
    module = nn.Sequential(inputs, nn.Linear(4, 1))
    optimizer = build_optimizer(partial(torch.optim.Adam, lr=0.1), module)
    before = table.weight.detach().clone()
    optimizer.step()
    changed = (table.weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 4999]
    torch.testing.assert_close(table.weight[3], before[3] - 0.1)  # the first step of Adam


def test_row_adam_computes_what_sparse_adam_computes():
    ours, theirs = (nn.Parameter(torch.arange(40.0).view(10, 4)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}
    pairs = [(ours, RowAdam([ours], **options)), (theirs, torch.optim.SparseAdam([theirs], **options))]
    for step in range(5):
        index = torch.tensor([[step, 7, step, 2]])
        gradient = torch.sparse_coo_tensor(index, torch.randn(4, 4), (10, 4), check_invariants=True)
        for parameter, optimizer in pairs:
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours[8:], torch.arange(40.0).view(10, 4)[8:])
