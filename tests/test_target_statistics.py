"""Target statistics of levels: from training rows alone, for tasks of all kinds, in every command."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from test_table import COLUMNS, frame, options, write_yaml
from torch import Tensor

from mmoe import load
from mmoe.data.batch import Batch
from mmoe.data.columns import Categorical, Numeric
from mmoe.data.schema import Schema
from mmoe.data.table_data import TableData
from mmoe.data.target_statistics import PRIOR_ROWS, with_target_statistics
from mmoe.errors import ArgumentError, UserError
from mmoe.models.inputs import Inputs
from mmoe.models.sparse_inputs import SparseInputs
from mmoe.tasks import Binary, Count, Multiclass, Regression

TARGET = COLUMNS | {
    "user": {"kind": "categorical", "encoding": "target", "min_count": 3},
    "city": {"kind": "categorical", "encoding": "one_hot_and_target"},
    "tags": {"kind": "multi", "separator": "|", "encoding": "one_hot_and_target"},
}
TASKS = (
    Binary("b", ("1",), name="b"),
    Multiclass("m", ("x", "y", "z"), name="m"),
    Regression("r", name="r", mean=2.0, std=3.0),
    Count("c", name="c", mean=2.0),
)
SCHEMA = Schema(
    (
        Categorical("both", ("x", "y", "z"), encoding="one_hot_and_target"),
        Categorical("tags", ("p", "q"), is_multi=True, max_values=2, encoding="one_hot_and_target"),
        Categorical("vector", ("s", "t"), size=2),
        Categorical("alone", ("u", "v"), encoding="target"),
    ),
    (Numeric("n", 0.0, 1.0, (0.0, 1.0)),),
    TASKS,
)


def rows(count: int = 300, seed: int = 0) -> Batch:
    """Random rows; some levels are unseen, some labels unknown, and rows have weights."""
    draw = torch.Generator().manual_seed(seed)

    def pick(first: int, last: int) -> Tensor:
        codes = torch.randint(first, last + 2, (count,), generator=draw)
        return torch.where(codes > last, 9, codes)

    tags = torch.stack([torch.full((count,), 3), pick(4, 4)], 1)
    levels = torch.stack([pick(0, 2), *tags.unbind(1), pick(5, 6), pick(7, 8)], 1)
    labels = torch.stack(
        [torch.randint(0, high, (count,), generator=draw).float() for high in (2, 3, 9, 5)], 1
    )
    known = torch.rand(count, 4, generator=draw) > 0.2
    weights = torch.rand(count, 4, generator=draw)
    numbers = torch.rand(count, 1, generator=draw)
    return Batch(levels, numbers, labels.masked_fill(~known, 0.0), known, weights)


def by_hand(batch: Batch, code: int) -> list[float]:
    """The statistics of a level before they are standardised, row by row."""
    found = []
    has_level = (batch.levels == code).any(1)
    for t, kinds in enumerate(([1.0], [0.0, 1.0, 2.0], [None], [None])):
        weight = (batch.weights[:, t] * batch.known[:, t]).double()
        for kind in kinds:
            label = batch.labels[:, t].double() if kind is None else (batch.labels[:, t] == kind).double()
            mean = (label * weight).sum() / weight.sum()
            own = weight * has_level
            prior = PRIOR_ROWS * weight.sum() / batch.known[:, t].sum()  # rows of the mean weight
            smoothed = ((label * own).sum() + prior * mean) / (own.sum() + prior)
            scale = {2: lambda x: x, 3: math.log}.get(t, lambda x: math.log(x / (1 - x)))
            found.append(scale(float(smoothed)))
    return [*found, math.log1p(int(has_level.sum()))]


@pytest.mark.parametrize("parts", [1, 4])
def test_statistics_equal_those_of_a_plain_loop(parts: int):
    batch = rows()
    cut = [Batch(*(None if x is None else x[i::parts] for x in batch[:5])) for i in range(parts)]
    schema = with_target_statistics(SCHEMA, cut)
    assert Schema.from_json(schema.to_json()) == schema
    for i, column in enumerate(schema.categorical):
        codes = range(*schema.code_offsets[i : i + 2])
        assert len(column.statistics) == (len(codes) if column.encoding else 0)
        if column.encoding:
            raw = torch.tensor([by_hand(batch, code) for code in codes], dtype=torch.float64)
            count = torch.tensor([int((batch.levels == code).sum()) for code in codes]).double()
            mean = (raw * count[:, None]).sum(0) / count.sum()
            std = ((raw - mean).square() * count[:, None] / count.sum()).sum(0).sqrt()
            torch.testing.assert_close(torch.tensor(column.statistics).double(), (raw - mean) / std)


def test_the_unit_of_the_weights_does_not_matter():
    batch = rows()
    large = batch._replace(weights=1700 * batch.weights)
    for one, other in zip(
        *(with_target_statistics(SCHEMA, [x]).categorical for x in (batch, large)), strict=True
    ):
        torch.testing.assert_close(torch.tensor(one.statistics), torch.tensor(other.statistics))


def test_levels_without_rows_and_labels_that_are_all_equal_give_finite_statistics():
    batch = rows()
    batch = batch._replace(levels=batch.levels.clamp(min=1), labels=torch.zeros_like(batch.labels))
    schema = with_target_statistics(SCHEMA, [batch._replace(known=torch.zeros_like(batch.known))])
    found = torch.tensor(schema.categorical[0].statistics)
    assert found.isfinite().all()
    assert not found[0].any()  # no row has this level


def test_inputs_hold_the_statistics_of_each_level():
    batch = rows()
    schema = with_target_statistics(SCHEMA, [batch])
    inputs = Inputs(schema)
    width = len(schema.categorical[0].statistics[0])
    assert width == 1 + 3 + 1 + 1 + 1
    assert inputs.num_outputs == 5 + 1 + 2 + 3 * width  # levels, bin, vector, statistics
    both, tags, alone = inputs.dense(batch.levels, batch.numbers)[:, 8:].split(width, 1)
    for column, found, codes in ((0, both, batch.levels[:, 0]), (3, alone, batch.levels[:, 4])):
        table = torch.tensor(schema.categorical[column].statistics)
        table = torch.cat([table, torch.zeros(1, width)])  # an unseen level
        place = torch.where(codes == 9, len(table) - 1, codes - schema.code_offsets[column])
        torch.testing.assert_close(found, table[place])
    table = torch.tensor(schema.categorical[1].statistics)
    both_tags = batch.levels[:, 2] == 4
    torch.testing.assert_close(tags[both_tags], table.mean(0).expand(int(both_tags.sum()), -1))
    torch.testing.assert_close(tags[~both_tags], table[0].expand(int((~both_tags).sum()), -1))
    assert inputs.column[8:].tolist() == [0] * width + [1] * width + [3] * width
    dense = [-3] * 2 + [-1] * width + [-2] * width + [-4] * width  # the column i has the number -1 - i
    assert inputs.input_groups == [0, 0, 0, 1, 1, 4, *dense]
    x = inputs(batch.levels, batch.numbers, allow_sparse=True)
    assert isinstance(x, SparseInputs)
    torch.testing.assert_close(x.dense, inputs.dense(batch.levels, batch.numbers)[:, 6:])
    assert not any("statistics" in name for name in inputs.state_dict())  # they follow from the schema


def test_a_column_without_a_level_is_an_ordinary_case():
    """Such as lists that are all empty."""
    empty = Categorical("tags", (), is_multi=True, encoding="target")
    inputs = Inputs(Schema((empty,), SCHEMA.numeric, SCHEMA.tasks))
    assert inputs(torch.zeros(2, 1, dtype=torch.int16), torch.zeros(2, len(SCHEMA.numeric))).isfinite().all()


def test_a_schema_must_have_the_statistics_that_its_columns_need():
    with pytest.raises(ArgumentError, match=r"both\.statistics: must be fitted"):
        Inputs(SCHEMA)
    column = SCHEMA.categorical[0]
    for changes, message in (
        ({"encoding": "mean"}, "encoding=mean: must be one of target, one_hot_and_target, or empty"),
        ({"statistics": ((0.0,),)}, "must have 3 entries, has 1"),
        ({"statistics": ((0.0,), (1.0, 2.0), (3.0,))}, "must be lists of one length"),
        ({"encoding": "", "statistics": ((0.0,),) * 3}, "must have 0 entries, has 3"),
        ({"size": 4}, "size=4: must be 0 with encoding"),
    ):
        with pytest.raises(ArgumentError, match=message):
            replace(column, **changes)
    with pytest.raises(ArgumentError, match="one-hot columns must come first"):
        Schema(SCHEMA.categorical[::-1], (), ())


def table(**changes: Any) -> TableData:
    return TableData(**options(**{"cache_dir": "cache", "columns": TARGET} | changes))


def changed(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows with other labels."""
    flipped = np.where(rows["clicked"] == 1, 0, 1)
    return rows.assign(clicked=flipped, spend=np.where(flipped == 1, 7.0, np.nan), visits=0, plan="bronze")


@pytest.mark.parametrize("stream", [False, True])
def test_labels_of_validation_and_test_rows_have_no_influence(tmp_path: Path, stream: bool):
    given = {"train": "train.csv", "validation": "val.csv", "test": "test.csv", "stream": stream}
    for number, name in enumerate(("train", "val", "test")):
        frame(200, number).to_csv(f"{name}.csv", index=False)
    before = table(**given).schema
    assert all(c.statistics for c in before.categorical if c.encoding)
    for name, number in (("val", 1), ("test", 2)):
        changed(frame(200, number)).to_csv(f"{name}.csv", index=False)
    assert table(**given).schema.categorical == before.categorical
    changed(frame(200, 0)).assign(plan=frame(200, 0)["plan"]).to_csv("train.csv", index=False)
    assert table(**given).schema.categorical != before.categorical


def test_shards_have_the_same_statistics_as_rows_in_memory(tmp_path: Path):
    frame().to_csv("train.csv", index=False)
    given = {"train": "train.csv", "test": {"fraction": 0.25}, "weight": "exposure"}
    streamed, resident = (table(stream=stream, **given).schema for stream in (True, False))
    for one, other in zip(streamed.categorical, resident.categorical, strict=True):
        assert (one.name, one.encoding) == (other.name, other.encoding)
        np.testing.assert_allclose(one.statistics, other.statistics, rtol=1e-9)


def test_every_command_serves_columns_with_statistics(train: Command, command: Callable):
    frame().to_csv("train.csv", index=False)
    write_yaml(columns=TARGET)
    options = ["--config-dir=conf", "data=mine", "logger=none", "trainer.max_epochs=2"]
    rates = ["learner.optimizer.lr=0.01", "learner.scheduler=null"]
    done = train(*options, "hydra.run.dir=run", *rates)
    assert done.code == 0, done.err
    run = load("run")
    by_name = {column.name: column for column in run.schema.categorical}
    assert by_name["user"].encoding == "target"
    assert run.schema.categorical[-1].name == "user"
    metrics = json.loads(Path("run/metrics.json").read_text())
    done = command("evaluate")("run=run", "resamples=20", "out=found.json")
    assert done.code == 0, done.err
    (found,) = json.loads(Path("found.json").read_text())["checkpoints"]
    assert found["metrics"]["click"]["auroc"] == pytest.approx(metrics["test"]["click"]["auroc"])
    new = frame(30, 7).assign(city="Oslo")  # an unseen level
    new.to_csv("new.csv", index=False)
    done = command("predict")("run=run", "input=new.csv", "output=scores.csv")
    assert done.code == 0, done.err
    assert np.isfinite(pd.read_csv("scores.csv")["click_probability"]).all()
    for form in ("onnx", "torch_export"):
        done = command("export")("run=run", f"format={form}")
        assert done.code == 0, done.err
    done = train("resume=run", "trainer.max_epochs=3")
    assert done.code == 0, done.err


def test_wrong_options(tmp_path: Path):
    frame().to_csv("train.csv", index=False)
    for encoding in ("target", "one_hot_and_target"):
        with pytest.raises(ArgumentError, match=f"size=4: must be left out with encoding={encoding}"):
            table(columns={"city": {"kind": "categorical", "encoding": encoding, "size": 4}})
    with pytest.raises(ArgumentError, match=r"encoding=target: must be one of .* for a numeric column"):
        table(columns={"amount": {"kind": "numeric", "encoding": "target"}})


def test_too_many_levels_for_one_hot(tmp_path: Path):
    many = pd.DataFrame({"id": [f"i{i}" for i in range(7000)], "clicked": [0, 1] * 3500})
    many.to_csv("train.csv", index=False)
    tasks = {"click": {"column": "clicked"}}
    column = {"kind": "categorical", "encoding": "one_hot_and_target"}
    with pytest.raises(UserError, match="one_hot_and_target allows 4096 codes"):
        _ = table(columns={"id": column}, tasks=tasks).schema
    schema = table(columns={"id": column | {"encoding": "target"}}, tasks=tasks).schema
    assert Inputs(schema).num_outputs == 2


def test_census_columns_have_one_encoding(train: Command):
    small = ["experiment=smoke", "logger=none"]
    done = train(*small, "data.level_encoding=target", "hydra.run.dir=run", "inputs.categorical.scale=0.5")
    assert done.code == 0, done.err
    assert {column.encoding for column in load("run").schema.categorical} == {"target"}
    done = train(*small, "data.level_encoding=standard")
    assert done.code == 2
    assert "level_encoding=standard: must be one of auto, one_hot" in done.err
