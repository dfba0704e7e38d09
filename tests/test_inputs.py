from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import config
from rtdl_num_embeddings import PiecewiseLinearEncoding
from test_encode import COLUMNS
from torch.nn.functional import one_hot

from mmoe.build import build
from mmoe.data.columns import NUMBER_ENCODINGS, Categorical, Numeric
from mmoe.data.fit_numbers import fit_numeric
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.models.column_encoders import ENCODERS as COLUMN_ENCODERS
from mmoe.models.column_encoders import number_encoder
from mmoe.models.encoders import (
    LevelEmbedding,
    MinMax,
    OneHot,
    PiecewiseLinear,
    PiecewiseLinearAndValues,
    Standardize,
    Unscaled,
)
from mmoe.models.inputs import Inputs
from mmoe.models.mmoe import MMoE
from mmoe.models.network import Network
from mmoe.models.replicas import Replicas
from mmoe.models.sparse_inputs import SparseInputs

SCHEMA = Schema(
    (Categorical("a", ("x", "y", "z")), Categorical("b", ("u", "v"))),
    (
        Numeric("m", 2.0, 4.0, (0.0, 1.0, 5.0, 7.0)),
        Numeric("n", -1.0, 0.5, (-3.0, 4.0)),
        Numeric("o", 0.0, 1.0, (0.0, 0.5, 9.0)),
    ),
    (),
)
LEVELS = torch.tensor([[0, 3], [2, 4], [5, 5], [1, 5]], dtype=torch.int16)  # 5 is unseen
ENCODERS = [Standardize, MinMax, Unscaled, PiecewiseLinear, PiecewiseLinearAndValues]
NUMBERS = torch.tensor([[0.0, 0.0, 0.0], [6.0, 4.0, 0.25], [-2.0, -9.0, 100.0], [1.0, 9.0, -1.0]])


def test_one_hot_and_unseen_levels():
    expected = one_hot(LEVELS.long(), 6).sum(1)[:, :5].float()
    assert torch.equal(OneHot(SCHEMA)(LEVELS), expected)
    assert OneHot(SCHEMA)(LEVELS)[2].sum() == 0
    assert torch.equal(OneHot(SCHEMA, scale=0.5)(LEVELS), expected / 2)
    with pytest.raises(UserError, match="scale=0: must be a finite number"):
        OneHot(SCHEMA, scale=0)


def test_standardize():
    mean, std = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([4.0, 0.5, 1.0])
    torch.testing.assert_close(Standardize(SCHEMA)(NUMBERS), (NUMBERS - mean) / std)


def test_numbers_of_training_rows_are_scaled_to_0_to_1():
    numbers = np.r_[-3.0, np.arange(100.0), 1e6]
    schema = Schema((), (fit_numeric("n", numbers, 20),), ())
    x = MinMax(schema)(torch.tensor(numbers[:, None], dtype=torch.float32))
    assert (x.min(), x.max()) == (0, 1)
    torch.testing.assert_close(x[1], torch.tensor([3 / 1000003]))


def test_min_max_of_a_constant_and_an_empty_column_is_0():
    columns = [
        fit_numeric(name, numbers, 20)
        for name, numbers in (("c", np.full(5, 7.0)), ("e", np.full(5, np.nan)))
    ]
    assert MinMax(Schema((), tuple(columns), ()))(torch.tensor([[7.0, 0.0]])).tolist() == [[0.0, 0.0]]


def test_unscaled():
    x = Inputs(SCHEMA, numeric=Unscaled)(LEVELS, NUMBERS)
    assert torch.equal(x[:, -3:], NUMBERS)
    huge = Inputs(SCHEMA, numeric=Unscaled)(LEVELS[:1], torch.tensor([[3e38, -3e38, 1.0]]))
    assert huge[0, -3:].abs().max() < 1.01e30


def test_every_encoding_of_a_column_has_its_encoder():
    assert list(COLUMN_ENCODERS) == list(NUMBER_ENCODINGS)
    for encoding, encoder in zip(NUMBER_ENCODINGS, ENCODERS, strict=True):
        schema = replace(SCHEMA, numeric=(replace(SCHEMA.numeric[0], encoding=encoding),))
        (part,) = number_encoder(schema, PiecewiseLinear).parts
        assert type(part) is encoder


def test_piecewise_linear_equals_the_library():
    library = PiecewiseLinearEncoding([torch.tensor(column.bins) for column in SCHEMA.numeric])
    ours = PiecewiseLinear(SCHEMA)
    assert ours.num_outputs == 6
    torch.testing.assert_close(ours(NUMBERS), library(NUMBERS))
    assert ours(torch.tensor([[6.0, 0.5, 0.25]])).tolist() == [[1.0, 1.0, 0.5, 0.5, 0.5, 0.0]]


def test_embedding_of_an_unseen_level_is_zero_and_stays_so():
    embedding = LevelEmbedding(SCHEMA, size=3)
    out = embedding(LEVELS)
    assert out.shape == (4, 6)
    assert (out[2] == 0).all()
    assert torch.equal(out[1], torch.cat([embedding.vectors.weight[2], embedding.vectors.weight[4]]))
    out.sum().backward()
    assert (embedding.vectors.weight.grad[5] == 0).all()
    with pytest.raises(ValueError, match=r"^size=0: must be an integer of at least 1"):
        LevelEmbedding(SCHEMA, size=0)


@pytest.mark.parametrize("numeric", [Standardize, PiecewiseLinear])
@pytest.mark.parametrize("categorical", [OneHot, lambda schema: LevelEmbedding(schema, 2)])
def test_schemas_without_levels_or_without_numbers(categorical, numeric):
    levels = (Schema(SCHEMA.categorical, (), ()), LEVELS, NUMBERS[:, :0])
    numbers = (Schema((), SCHEMA.numeric, ()), LEVELS[:, :0], NUMBERS)
    for schema, *rows in (levels, numbers):
        inputs = Inputs(schema, categorical, numeric)
        model = MMoE(inputs.num_outputs, num_tasks=1)
        assert model(inputs(*rows)).logits.shape == (4, 1)


@pytest.mark.parametrize(
    ("name", "num_inputs"),
    [("piecewise", 11), ("standard", 8), ("min_max", 8), ("unscaled", 8), ("embedding", 11)],
)
def test_shipped_configurations(name: str, num_inputs: int):
    inputs = build(config(f"inputs={name}"), "inputs", schema=SCHEMA)
    assert inputs.num_outputs == num_inputs
    assert MMoE(num_inputs, num_tasks=1)(inputs(LEVELS, NUMBERS)).logits.shape == (4, 1)


def test_frequent_values_have_their_own_inputs():
    values = (Numeric("m", 0.0, 1.0, (0.0, 10.0), (0.0, 7298.0)), Numeric("n", 0.0, 1.0, (0.0, 1.0), (0.5,)))
    encoder = PiecewiseLinearAndValues(Schema((), values, ()))
    assert encoder.num_outputs == 5
    x = encoder(torch.tensor([[7298.0, 0.5], [7297.0, 0.0], [0.0, 7298.0]]))
    torch.testing.assert_close(x[:, :2], encoder.bins(torch.tensor([[7298, 0.5], [7297, 0], [0, 7298]])))
    assert x[:, 2:].tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]


OWN = replace(  # columns with encodings of their own; the first has the encoding of `Inputs`
    SCHEMA,
    numeric=(
        replace(SCHEMA.numeric[0], frequent_values=(6.0,)),
        replace(SCHEMA.numeric[1], encoding="piecewise_linear_and_values", frequent_values=(4.0, 9.0)),
        replace(SCHEMA.numeric[2], encoding="standard"),
    ),
)


def test_a_column_may_have_an_encoding_of_its_own():
    def only(i: int) -> Schema:
        return replace(OWN, numeric=(OWN.numeric[i],))

    encoder = number_encoder(OWN, PiecewiseLinear)
    alone = [PiecewiseLinear(only(0)), PiecewiseLinearAndValues(only(1)), Standardize(only(2))]
    expected = torch.cat([part(NUMBERS[:, i : i + 1]) for i, part in enumerate(alone)], 1)
    assert torch.equal(encoder(NUMBERS), expected)
    assert encoder.columns == [0, 0, 0, 1, 1, 1, 2]
    assert type(number_encoder(SCHEMA, Standardize)) is Standardize
    first, _, last = OWN.numeric
    reordered = replace(OWN, numeric=(last, first, replace(first, name="p", encoding="standard")))
    encoder = number_encoder(reordered, PiecewiseLinear)  # the columns of one encoding are adjacent
    assert encoder.columns == [0, 2, 1, 1, 1]
    x = NUMBERS[:, [2, 0, 0]]
    standard = Standardize(replace(OWN, numeric=(last, first)))(x[:, :2])
    assert torch.equal(encoder(x), torch.cat([standard, alone[0](x[:, 1:2])], 1))


@pytest.mark.parametrize("categorical", [OneHot, partial(LevelEmbedding, size=3)])
@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("schema", [SCHEMA, OWN])
def test_each_output_depends_on_its_column_only(categorical, numeric, schema):
    inputs = Inputs(schema, categorical, numeric)
    x = inputs(LEVELS, NUMBERS)
    assert x.shape == (4, inputs.num_outputs) == (4, len(inputs.column))
    changed = set()
    for column in range(inputs.num_columns):
        levels, numbers = LEVELS.clone(), NUMBERS.clone()
        if column < levels.shape[1]:
            levels[:, column] = levels[:, column].roll(1)
        else:
            numbers[:, column - levels.shape[1]] = numbers[:, column - levels.shape[1]].roll(1)
        found = (inputs(levels, numbers) != x).any(0).nonzero().flatten()
        assert set(inputs.column[found].tolist()) <= {column}
        changed |= set(inputs.column[found].tolist())
    assert changed == set(range(inputs.num_columns))


def test_only_training_drops_columns():
    inputs = Inputs(SCHEMA, dropout=0.5)
    levels, numbers = LEVELS.repeat(100, 1), NUMBERS.repeat(100, 1)
    torch.manual_seed(0)
    dropped, whole = inputs(levels, numbers), inputs.dense(levels, numbers)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    for column in range(inputs.num_columns):  # a column is dropped as a whole
        of = inputs.column == column
        lost = (dropped[:, of] == 0).all(1)
        torch.testing.assert_close(dropped[~lost][:, of], 2 * whole[~lost][:, of])
    assert kept.sum() / (whole != 0).sum() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(inputs.eval()(levels, numbers), whole)


def network(numeric: type = PiecewiseLinear, schema: Schema = SCHEMA, categorical=OneHot) -> Network:
    torch.manual_seed(0)
    inputs = Inputs(schema, categorical, numeric)
    return Network(inputs, MMoE(inputs.num_outputs, num_tasks=2)).eval()


def many(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and numbers of `count` rows."""
    return LEVELS.long().repeat(count, 1)[:count], NUMBERS.repeat(count, 1)[:count]


def in_all_ways(made: Network, levels: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
    """Logits of a small batch, of a sparse one, of replicas, and of compiled inputs."""
    repeats = -(-64 // len(levels))
    sparse = made(levels.repeat(repeats, 1), numbers.repeat(repeats, 1)).logits[: len(levels)]
    torch.compiler.reset()  # after several compilations of a function torch no longer compiles it
    compiled = torch.compile(made.inputs, backend="eager")(levels, numbers)
    replicas = Replicas([made, made])(levels, numbers).logits[0]
    return [made(levels, numbers).logits, sparse, replicas, made.model(compiled).logits]


@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("categorical", [OneHot, partial(LevelEmbedding, size=2)])
@torch.no_grad()
def test_a_missing_number_gives_zeros_and_an_infinite_one_gives_nan(categorical, numeric: type):
    made = network(numeric, categorical=categorical)
    missing, infinite = NUMBERS.clone(), NUMBERS.clone()
    missing[1, 1] = missing[2, 0] = torch.nan
    infinite[1, 0], infinite[2, 2] = torch.inf, -torch.inf
    x = made.inputs(LEVELS, NUMBERS)
    x[1, made.inputs.column == 3] = x[2, made.inputs.column == 2] = 0
    assert torch.equal(made.inputs(LEVELS, missing), x)
    for logits in in_all_ways(made, LEVELS, missing):
        torch.testing.assert_close(logits, made.model(x).logits)
    for logits in in_all_ways(made, LEVELS, infinite):
        assert not logits[1:3].isfinite().any()
        torch.testing.assert_close(logits[[0, 3]], made(LEVELS, NUMBERS).logits[[0, 3]])


@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize("name", COLUMNS)
@torch.no_grad()
def test_every_column_gives_finite_logits_that_agree(name: str, numeric: type):
    values = np.repeat(COLUMNS[name], 10)
    column = fit_numeric("n", values, 48)
    made = network(numeric, Schema(SCHEMA.categorical, (column,), ()))
    others = [0.0, 1.0, -1e-30, 1e10, -1e20, 1e30, -3.4e38, 3.4e38]
    numbers = torch.tensor([*COLUMNS[name][:50], *others], dtype=torch.float32)[:, None]
    first, *ways = in_all_ways(made, LEVELS[:1].repeat(len(numbers), 1), numbers)
    assert first.isfinite().all()
    for logits in ways:
        torch.testing.assert_close(logits, first, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("count", [2, 64])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@torch.no_grad()
def test_codes_of_every_integer_type(dtype: torch.dtype, count: int):
    made, (levels, numbers) = network(), many(count)
    assert isinstance(made.inputs(levels, numbers, allow_sparse=True), SparseInputs) == (count == 64)
    assert torch.equal(made(levels.to(dtype), numbers).logits, made(levels, numbers).logits)


@pytest.mark.parametrize("count", [2, 63, 64, 300])
@pytest.mark.parametrize(("column", "code"), [(0, 3), (0, -1), (0, 6), (1, 0), (1, 2), (1, 7), (1, -5)])
def test_invalid_codes_are_refused(column: int, code: int, count: int):
    made, (levels, numbers) = network(), many(count)
    levels[1, column] = code
    name, codes = [("a", "0 to 2"), ("b", "3 to 4")][column]
    message = f"^column {name}: must be a code from {codes}, or 5 for an unseen level; row 1 is {code}$"
    for called in (made, made.inputs, Replicas([made, made])):
        with pytest.raises(UserError, match=message):
            called(levels, numbers)


@pytest.mark.parametrize(
    ("levels", "numbers"),
    [
        (LEVELS[0], NUMBERS),
        (LEVELS, NUMBERS[0]),
        (LEVELS[None], NUMBERS[None]),
        (LEVELS[:, :1], NUMBERS),
        (LEVELS, NUMBERS[:, :2]),
        (LEVELS[:3], NUMBERS),
        (LEVELS.float(), NUMBERS),
        (LEVELS > 0, NUMBERS),
    ],
)
def test_rows_of_other_shapes_are_refused(levels: torch.Tensor, numbers: torch.Tensor):
    message = r"^levels must be integers \[B, 2\] and numbers \[B, 3\]; they are \["
    for count in (1, 64):
        shape = (count, *[1] * (levels.ndim - 1)), (count, *[1] * (numbers.ndim - 1))
        with pytest.raises(UserError, match=message):
            network()(levels.repeat(shape[0]), numbers.repeat(shape[1]))


def test_an_empty_batch():
    assert network()(LEVELS[:0], NUMBERS[:0]).logits.shape == (0, 2)


@pytest.mark.parametrize("numeric", ENCODERS)
@pytest.mark.parametrize(("dtype", "error"), [("half", 0.02), ("bfloat16", 0.1), ("double", 1e-5)])
@torch.no_grad()
def test_networks_of_other_types_read_raw_rows(dtype: str, error: float, numeric: type):
    schema = Schema(SCHEMA.categorical, (fit_numeric("n", np.r_[np.arange(100.0), 99999, 1e6], 20),), ())
    made = network(numeric, schema)
    numbers = torch.tensor([[0.0], [57.0], [99999.0], [1e6]])
    if (dtype, numeric) == ("half", Unscaled):  # it holds numbers up to 65,504
        numbers = numbers / 100
    expected = made(LEVELS, numbers).logits
    scales = {name: buffer.clone() for name, buffer in made.inputs.named_buffers()}
    cast = getattr(made, dtype)()
    for count in (1, 100):
        logits = cast(LEVELS.repeat(count, 1), numbers.repeat(count, 1)).logits[:4]
        assert logits.dtype == getattr(torch, dtype)
        torch.testing.assert_close(logits.float(), expected, rtol=error, atol=error)
    for name, buffer in made.inputs.named_buffers():
        assert torch.equal(buffer, scales[name])
        assert buffer.dtype == scales[name].dtype
    assert torch.equal(made.float()(LEVELS, numbers).logits.isfinite(), expected.isfinite())
