from functools import partial

import pytest
import torch
from conftest import config
from rtdl_num_embeddings import PiecewiseLinearEncoding
from torch.nn.functional import one_hot

from mmoe.build import build
from mmoe.data.schema import Categorical, Numeric, Schema
from mmoe.models.inputs import (
    Inputs,
    LevelEmbedding,
    OneHot,
    PiecewiseLinear,
    PiecewiseLinearAndValues,
    Standardize,
)
from mmoe.models.mmoe import MMoE

SCHEMA = Schema(
    (Categorical("a", ("x", "y", "z")), Categorical("b", ("u", "v"))),
    (
        Numeric("m", 2.0, 4.0, (0.0, 1.0, 5.0, 7.0)),
        Numeric("n", -1.0, 0.5, (-3.0, 4.0)),
        Numeric("o", 0.0, 1.0, (0.0, 0.5, 9.0)),
    ),
    (),
)
CODES = torch.tensor([[0, 3], [2, 4], [5, 5], [1, 5]], dtype=torch.int16)  # 5 is unseen
NUMERICS = torch.tensor([[0.0, 0.0, 0.0], [6.0, 4.0, 0.25], [-2.0, -9.0, 100.0], [1.0, 9.0, -1.0]])


def test_one_hot_and_unseen_levels():
    expected = one_hot(CODES.long(), 6).sum(1)[:, :5].float()
    assert torch.equal(OneHot(SCHEMA)(CODES), expected)
    assert OneHot(SCHEMA)(CODES)[2].sum() == 0


def test_standardize():
    mean, std = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([4.0, 0.5, 1.0])
    torch.testing.assert_close(Standardize(SCHEMA)(NUMERICS), (NUMERICS - mean) / std)


def test_piecewise_linear_equals_the_library():
    library = PiecewiseLinearEncoding([torch.tensor(column.bins) for column in SCHEMA.numeric])
    ours = PiecewiseLinear(SCHEMA)
    assert ours.num_outputs == 6
    torch.testing.assert_close(ours(NUMERICS), library(NUMERICS))
    assert ours(torch.tensor([[6.0, 0.5, 0.25]])).tolist() == [[1.0, 1.0, 0.5, 0.5, 0.5, 0.0]]


def test_embedding_of_an_unseen_level_is_zero_and_stays_so():
    embedding = LevelEmbedding(SCHEMA, size=3)
    out = embedding(CODES)
    assert out.shape == (4, 6)
    assert (out[2] == 0).all()
    assert torch.equal(out[1], torch.cat([embedding.vectors.weight[2], embedding.vectors.weight[4]]))
    out.sum().backward()
    assert (embedding.vectors.weight.grad[5] == 0).all()
    with pytest.raises(ValueError, match=r"^size=0: must be an integer of at least 1"):
        LevelEmbedding(SCHEMA, size=0)


@pytest.mark.parametrize("numeric", [Standardize, PiecewiseLinear])
def test_both_parts_side_by_side(numeric: type):
    inputs = Inputs(SCHEMA, OneHot, numeric)
    x = inputs(CODES, NUMERICS)
    assert x.shape == (4, inputs.num_outputs)
    assert torch.equal(x[:, :5], OneHot(SCHEMA)(CODES))


@pytest.mark.parametrize("numeric", [Standardize, PiecewiseLinear])
@pytest.mark.parametrize("categorical", [OneHot, lambda schema: LevelEmbedding(schema, 2)])
def test_a_kind_of_column_may_be_missing(categorical, numeric):
    levels = (Schema(SCHEMA.categorical, (), ()), CODES, NUMERICS[:, :0])
    numbers = (Schema((), SCHEMA.numeric, ()), CODES[:, :0], NUMERICS)
    for schema, *rows in (levels, numbers):
        inputs = Inputs(schema, categorical, numeric)
        model = MMoE(inputs.num_outputs, num_tasks=1)
        assert model(inputs(*rows)).logits.shape == (4, 1)


@pytest.mark.parametrize(("name", "num_inputs"), [("piecewise", 11), ("standard", 8), ("embedding", 11)])
def test_shipped_configurations(name: str, num_inputs: int):
    inputs = build(config(f"inputs={name}"), "inputs", schema=SCHEMA)
    assert inputs.num_outputs == num_inputs
    assert MMoE(num_inputs, num_tasks=1)(inputs(CODES, NUMERICS)).logits.shape == (4, 1)


def test_frequent_values_have_inputs_of_their_own():
    values = (Numeric("m", 0.0, 1.0, (0.0, 10.0), (0.0, 7298.0)), Numeric("n", 0.0, 1.0, (0.0, 1.0), (0.5,)))
    encoder = PiecewiseLinearAndValues(Schema((), values, ()))
    assert encoder.num_outputs == 5
    x = encoder(torch.tensor([[7298.0, 0.5], [7297.0, 0.0], [0.0, 7298.0]]))
    torch.testing.assert_close(x[:, :2], encoder.bins(torch.tensor([[7298, 0.5], [7297, 0], [0, 7298]])))
    assert x[:, 2:].tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("categorical", [OneHot, partial(LevelEmbedding, size=3)])
@pytest.mark.parametrize("numeric", [Standardize, PiecewiseLinear, PiecewiseLinearAndValues])
def test_every_output_is_of_its_column(categorical, numeric):
    inputs = Inputs(SCHEMA, categorical, numeric)
    assert len(inputs.column) == inputs.num_outputs
    x = inputs(CODES, NUMERICS)
    changed = set()
    for column in range(inputs.num_columns):
        codes, numerics = CODES.clone(), NUMERICS.clone()
        if column < codes.shape[1]:
            codes[:, column] = codes[:, column].roll(1)
        else:
            numerics[:, column - codes.shape[1]] = numerics[:, column - codes.shape[1]].roll(1)
        found = (inputs(codes, numerics) != x).any(0).nonzero().flatten()
        assert set(inputs.column[found].tolist()) <= {column}
        changed |= set(inputs.column[found].tolist())
    assert changed == set(range(inputs.num_columns))


def test_dropout_of_columns_is_of_training_alone():
    inputs = Inputs(SCHEMA, dropout=0.5)
    codes, numerics = CODES.repeat(100, 1), NUMERICS.repeat(100, 1)
    torch.manual_seed(0)
    dropped = inputs(codes, numerics)
    plain = Inputs(SCHEMA)
    plain.sparse = False
    whole = plain(codes, numerics)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    for column in range(inputs.num_columns):  # the whole column is lost, or nothing of it
        of = inputs.column == column
        lost = (dropped[:, of] == 0).all(1)
        torch.testing.assert_close(dropped[~lost][:, of], 2 * whole[~lost][:, of])
    assert kept.sum() / (whole != 0).sum() == pytest.approx(0.5, abs=0.05)
    inputs.sparse = False
    assert torch.equal(inputs.eval()(codes, numerics), whole)
