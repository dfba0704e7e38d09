from functools import partial

import numpy as np
import pytest
import torch
from conftest import config
from rtdl_num_embeddings import PiecewiseLinearEncoding
from test_encode import COLUMNS
from torch.nn.functional import one_hot

from mmoe.build import build
from mmoe.data.encode import fit_numeric
from mmoe.data.schema import Categorical, Numeric, Schema
from mmoe.errors import UserError
from mmoe.models.inputs import (
    Inputs,
    LevelEmbedding,
    OneHot,
    PiecewiseLinear,
    PiecewiseLinearAndValues,
    Standardize,
)
from mmoe.models.mmoe import MMoE
from mmoe.models.network import Network
from mmoe.models.replicas import Replicas
from mmoe.models.sparse import SparseInputs

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


ENCODERS = [Standardize, PiecewiseLinear, PiecewiseLinearAndValues]


def network(numeric: type = PiecewiseLinear, schema: Schema = SCHEMA, categorical=OneHot) -> Network:
    torch.manual_seed(0)
    inputs = Inputs(schema, categorical, numeric)
    return Network(inputs, MMoE(inputs.num_outputs, num_tasks=2)).eval()


def in_both_ways(made: Network, codes: torch.Tensor, numerics: torch.Tensor) -> list[torch.Tensor]:
    """Logits of rows as a few, as one of many, by vmap and compiled."""
    repeats = -(-64 // len(codes))
    many = made(codes.repeat(repeats, 1), numerics.repeat(repeats, 1)).logits[: len(codes)]
    torch.compiler.reset()  # after some compilations of a function torch runs it as it is
    compiled = torch.compile(made.inputs, backend="eager")(codes, numerics)
    replicas = Replicas([made, made])(codes, numerics).logits[0]
    return [made(codes, numerics).logits, many, replicas, made.model(compiled).logits]


@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("categorical", [OneHot, partial(LevelEmbedding, size=2)])
@torch.no_grad()
def test_a_missing_number_gives_zeros_and_an_infinite_one_no_logits(categorical, numeric: type):
    made = network(numeric, categorical=categorical)
    missing, infinite = NUMERICS.clone(), NUMERICS.clone()
    missing[1, 1] = missing[2, 0] = torch.nan
    infinite[1, 0], infinite[2, 2] = torch.inf, -torch.inf
    x = made.inputs(CODES, NUMERICS)
    x[1, made.inputs.column == 3] = x[2, made.inputs.column == 2] = 0
    assert torch.equal(made.inputs(CODES, missing), x)
    for logits in in_both_ways(made, CODES, missing):
        torch.testing.assert_close(logits, made.model(x).logits)
    for logits in in_both_ways(made, CODES, infinite):
        assert not logits[1:3].isfinite().any()
        torch.testing.assert_close(logits[[0, 3]], made(CODES, NUMERICS).logits[[0, 3]])


@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("name", COLUMNS)
@torch.no_grad()
def test_every_column_gives_finite_logits_that_agree(name: str, numeric: type):
    values = np.repeat(COLUMNS[name], 10)
    column = fit_numeric("n", values, 48)
    made = network(numeric, Schema(SCHEMA.categorical, (column,), ()))
    others = [0.0, 1.0, -1e-30, 1e10, -1e20, 1e30, -3.4e38, 3.4e38]
    numerics = torch.tensor([*COLUMNS[name][:50], *others], dtype=torch.float32)[:, None]
    first, *ways = in_both_ways(made, CODES[:1].repeat(len(numerics), 1), numerics)
    assert first.isfinite().all()
    for logits in ways:
        torch.testing.assert_close(logits, first, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("count", [2, 64])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@torch.no_grad()
def test_codes_of_every_integer_type(dtype: torch.dtype, count: int):
    made, codes, numerics = network(), CODES.repeat(count, 1)[:count], NUMERICS.repeat(count, 1)[:count]
    assert isinstance(made.inputs(codes, numerics), SparseInputs) == (count == 64)
    assert torch.equal(made(codes.to(dtype), numerics).logits, made(codes, numerics).logits)


@pytest.mark.parametrize("count", [2, 63, 64, 300])
@pytest.mark.parametrize(("column", "code"), [(0, 3), (0, -1), (0, 6), (1, 0), (1, 2), (1, 7), (1, -5)])
def test_codes_of_no_level_of_their_column_are_refused(column: int, code: int, count: int):
    made, codes, numerics = (
        network(),
        CODES.repeat(count, 1)[:count].long(),
        NUMERICS.repeat(count, 1)[:count],
    )
    codes[1, column] = code
    name, levels = [("a", "0 to 2"), ("b", "3 to 4")][column]
    message = f"^column {name}: must be a code from {levels}, or 5 where it is unseen; row 1 is {code}$"
    for called in (made, made.inputs, Replicas([made, made])):
        with pytest.raises(UserError, match=message):
            called(codes, numerics)


@pytest.mark.parametrize(
    ("codes", "numerics"),
    [
        (CODES[0], NUMERICS),
        (CODES, NUMERICS[0]),
        (CODES[None], NUMERICS[None]),
        (CODES[:, :1], NUMERICS),
        (CODES, NUMERICS[:, :2]),
        (CODES[:3], NUMERICS),
        (CODES.float(), NUMERICS),
        (CODES > 0, NUMERICS),
    ],
)
def test_rows_of_other_shapes_are_refused(codes: torch.Tensor, numerics: torch.Tensor):
    message = r"^codes \[B, 2\], integers, and numerics \[B, 3\]: must be rows of these shapes, are"
    for count in (1, 64):
        shape = (count, *[1] * (codes.ndim - 1)), (count, *[1] * (numerics.ndim - 1))
        with pytest.raises(UserError, match=message):
            network()(codes.repeat(shape[0]), numerics.repeat(shape[1]))


def test_no_rows_have_no_logits():
    assert network()(CODES[:0], NUMERICS[:0]).logits.shape == (0, 2)


@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize(("dtype", "error"), [("half", 0.02), ("bfloat16", 0.1), ("double", 1e-5)])
@torch.no_grad()
def test_networks_of_other_types_read_raw_rows(dtype: str, error: float, numeric: type):
    schema = Schema(SCHEMA.categorical, (fit_numeric("n", np.r_[np.arange(100.0), 99999, 1e6], 20),), ())
    made = network(numeric, schema)
    numerics = torch.tensor([[0.0], [57.0], [99999.0], [1e6]])
    expected = made(CODES, numerics).logits
    scales = {name: buffer.clone() for name, buffer in made.inputs.named_buffers()}
    cast = getattr(made, dtype)()
    for count in (1, 100):
        logits = cast(CODES.repeat(count, 1), numerics.repeat(count, 1)).logits[:4]
        assert logits.dtype == getattr(torch, dtype)
        torch.testing.assert_close(logits.float(), expected, rtol=error, atol=error)
    for name, buffer in made.inputs.named_buffers():
        assert torch.equal(buffer, scales[name])
        assert buffer.dtype == scales[name].dtype
    assert torch.equal(made.float()(CODES, numerics).logits.isfinite(), expected.isfinite())
