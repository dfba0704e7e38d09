"""Rows in shards: the same rows and the same schema as in memory, read in bounded memory."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from test_resume import assert_equal_runs, stopped
from test_table import TASKS, frame, options, write_yaml

import mmoe
from mmoe.data import (
    csv_file,
    encode_shards,
    number_statistics,
    partitions,
    shard_loader,
    shards,
    table_splits,
)  # fmt: skip
from mmoe.data.batch import Batch
from mmoe.data.columns import Numeric
from mmoe.data.fit_numbers import fit_number_statistics, fit_numeric
from mmoe.data.loader import RowLoader
from mmoe.data.number_statistics import NumberStatistics, is_in_sample
from mmoe.data.shard_loader import ShardLoader
from mmoe.data.splits import Dataset
from mmoe.data.table_data import TableData
from mmoe.errors import UserError

N = 400


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch):
    """Partitions, chunks and blocks of few rows, so that small files have several."""
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 120)
    monkeypatch.setattr(partitions, "CHUNK_ROWS", 50)
    monkeypatch.setattr(shards, "PIECE_ROWS", 30)
    monkeypatch.setattr(shard_loader, "BLOCK_ROWS", 90)


def write_files(folder: Path, count: int = 1, ending: str = "parquet", group: int = 70, rows: int = N) -> str:
    """The rows of `frame`, cut into `count` files."""
    folder.mkdir()
    whole = frame(rows)
    for i, part in enumerate(np.array_split(np.arange(len(whole)), count)):
        path = folder / f"{i}.{ending}"
        own = whole.iloc[part]
        if ending == "parquet":
            own.to_parquet(path, row_group_size=group, index=False)
        else:
            own.to_csv(path, index=False)
    return str(folder)


def table(**changes: Any) -> TableData:
    return TableData(**options(**({"cache_dir": "cache"} | changes)))


def read(rows: Any) -> Batch:
    return rows if isinstance(rows, Batch) else rows.read(rows.pieces)


def assert_same(one: Dataset, other: Dataset) -> None:
    """The same schema, but for rounding in the statistics of numbers, and the same rows."""
    assert one.schema.categorical == other.schema.categorical
    assert one.schema.num_rows == other.schema.num_rows
    parts = [(*schema.numeric, *schema.tasks) for schema in (one.schema, other.schema)]
    for a, b in zip(*parts, strict=True):
        for key, value in vars(a).items():
            if isinstance(value, float):
                assert value == pytest.approx(getattr(b, key), rel=1e-12)
            else:
                assert value == getattr(b, key)
    for split in ("train", "val", "test"):
        for x, y in zip(read(one.splits[split])[:6], read(other.splits[split])[:6], strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x, y, equal_nan=True, rtol=0, atol=0)


SPLITS: list[dict[str, Any]] = [
    {},
    {"validation": {"fraction": 0.2, "by": "user"}, "test": {"last": 0.2, "by": "joined"}},
    {"validation": {"last": 0.2, "by": "amount_known"}, "test": {"column": "plan", "value": "gold"}},
    {"group_by": "user", "weight": "exposure"},
]


@pytest.mark.parametrize("number", range(len(SPLITS)))
def test_shards_hold_the_rows_and_the_schema_of_a_table_in_memory(tmp_path: Path, number: int):
    changes = SPLITS[number]
    files = write_files(tmp_path / "rows", 3)
    if number == 2:
        for path in Path(files).iterdir():
            part = pd.read_parquet(path)
            part.assign(amount_known=part["amount"].fillna(0)).to_parquet(path, row_group_size=70)
        changes = changes | {"tasks": {name: TASKS[name] for name in ("click", "visits")}}
    streamed = table(train=files, stream=True, **changes)
    assert_same(streamed.dataset, table(train=files, stream=False, **changes).dataset)
    assert len(streamed.dataset.splits["train"].pieces) > 3


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_schema_does_not_depend_on_how_the_files_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
):
    monkeypatch.setattr(number_statistics, "MAX_DISTINCT", 60)
    monkeypatch.setattr(number_statistics, "SAMPLE_ROWS", 100)
    found = []
    for count, group in ((1, 400), (1, 7), (4, 100), (9, 30)):
        files = write_files(tmp_path / f"{count}-{group}", count, ending, group)
        found.append(table(train=files, stream=True).dataset)
    for other in found[1:]:
        assert other.schema.categorical == found[0].schema.categorical
        assert other.schema.numeric == found[0].schema.numeric
        assert other.schema.tasks == found[0].schema.tasks
        for split in ("train", "val", "test"):
            x, y = read(found[0].splits[split]), read(other.splits[split])
            assert torch.equal(x.levels, y.levels)
            assert torch.equal(x.labels, y.labels)


def test_statistics_of_many_distinct_values_are_those_of_a_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(number_statistics, "MAX_DISTINCT", 2000)
    monkeypatch.setattr(number_statistics, "SAMPLE_ROWS", 4000)
    random = np.random.default_rng(0)
    values = np.where(random.random(50_000) < 0.3, 0.0, random.gamma(2.0, 10.0, 50_000))
    values[::50] = np.nan
    total = NumberStatistics()
    for start in range(0, 50_000, 777):
        part = values[start : start + 777]
        total.merge(NumberStatistics.of(part, is_in_sample(start, len(part), 50_000), start))
    assert not total.is_exact
    assert len(total.distinct) == 2000
    assert 3500 < len(total.values()) < 4500
    ours = fit_number_statistics(Numeric("x", 0.0, 1.0, (0.0, 1.0)), total, 16)
    theirs = fit_numeric("x", values, 16)
    assert ours.has_missing
    assert ours.mean == pytest.approx(theirs.mean, rel=0.05)
    assert ours.std == pytest.approx(theirs.std, rel=0.05)
    assert (ours.bins[0], ours.bins[-1]) == (theirs.bins[0], theirs.bins[-1])
    np.testing.assert_allclose(ours.bins[1:-1], theirs.bins[1:-1], rtol=0.1)
    assert 0.0 in ours.frequent_values


def test_each_of_many_rows_is_chosen_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_splits, "MAX_SHUFFLED_ROWS", 100)
    monkeypatch.setattr("mmoe.data.table_jobs.MAX_SHUFFLED_ROWS", 100)
    files = write_files(tmp_path / "rows", 3)
    for rules in (
        {"validation": {"fraction": 0.2}, "test": {"fraction": 0.3}},
        {"validation": {"fraction": 0.3, "by": "user"}, "test": {"column": "plan", "value": "gold"}},
    ):
        streamed = table(train=files, stream=True, **rules).dataset
        assert_same(streamed, table(train=files, stream=False, **rules).dataset)
        positions = [p for rows in streamed.splits.values() for _, p in rows.parts()]
        assert torch.equal(torch.cat(positions).sort().values, torch.arange(N))
    last = table(train=files, stream=True, test={"last": 0.3, "by": "joined"}).dataset
    assert last.schema.num_rows["test"] == pytest.approx(0.3 * N, rel=0.3)
    joined = frame()["joined"].to_numpy()
    test = torch.cat([p for _, p in last.splits["test"].parts()]).numpy()
    train = torch.cat([p for _, p in last.splits["train"].parts()]).numpy()
    assert joined[test].min() > joined[train].max()


def test_an_interrupted_encoding_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = write_files(tmp_path / "rows", 5)
    whole = table(train=files, stream=True, cache_dir=str(tmp_path / "whole")).dataset
    encode_shard, calls = encode_shards.encode_shard, []

    def recorded(job: Any, folder: Path) -> None:
        calls.append(job.number)
        encode_shard(job, folder)

    def killed(job: Any, folder: Path) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        recorded(job, folder)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(encode_shards, "encode_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        table(train=files, stream=True).dataset  # noqa: B018
    monkeypatch.setattr(encode_shards, "encode_shard", recorded)
    monkeypatch.setattr(encode_shards, "collect_statistics", None)  # statistics are not computed again
    assert_same(table(train=files, stream=True).dataset, whole)
    assert sorted(calls) == [0, 1, 2, 3, 4]
    assert len(calls) == 5


def rows_of(tmp_path: Path, count: int = N) -> tuple[Any, Batch]:
    files = write_files(tmp_path / "rows", 3, rows=count)
    dataset = table(train=files, stream=True, batch_size=16).dataset
    return dataset.splits["train"], read(dataset.splits["train"])


def lines(rows: Batch) -> list[tuple[float, ...]]:
    parts = [rows.levels.double(), rows.numbers.double().nan_to_num(-1), rows.labels.double()]
    return sorted(map(tuple, torch.cat(parts, 1).tolist()))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 16, 1000])
def test_every_row_is_used_once_in_an_epoch(tmp_path: Path, ranks: int, size: int):
    rows, whole = rows_of(tmp_path)
    for seed in (None, 0):
        found, steps = [], set()
        for rank in range(ranks):
            loader = ShardLoader(rows, size, seed, rank, ranks)
            batches = list(loader)
            steps.add(len(batches))
            assert len(batches) == len(loader)
            assert all(len(batch.labels) == size for batch in batches[:-1])
            assert len(batches[-1].labels) <= size + 1
            found += batches
        assert len(steps) == 1
        together = Batch(*(torch.cat(x) for x in list(zip(*found, strict=True))[:3]))
        assert lines(together) == lines(whole)
        if seed is None:
            assert torch.equal(together.labels, whole.labels)


def test_orders_differ_by_epoch_and_seed_and_are_resumed(tmp_path: Path):
    rows, _ = rows_of(tmp_path)

    def order(seed: int, epoch: int, start: int = 0) -> list[Any]:
        loader = ShardLoader(rows, 16, seed)
        loader.load_state_dict({"epoch": epoch, "step": start})
        return [batch.numbers.nan_to_num(-1).tolist() for batch in loader]

    whole = order(0, 0)
    assert order(0, 0) == whole
    assert order(0, 0, 5) == whole[5:]
    assert order(0, 0, len(whole) - 1) == whole[-1:]
    assert order(0, 0, len(whole)) == []
    # Many processes may have fewer steps, but the last of them is in mid-epoch for one process.
    size = rows.num_rows // 7
    one, many = ShardLoader(rows, 7 * size, 0), ShardLoader(rows, size, 0, world_size=7)
    assert (len(many), len(one)) == (1, 2)
    with pytest.raises(UserError, match=r"^trainer.devices: the number of processes must be 1 to resume"):
        many.load_state_dict(one.state_dict() | {"step": len(many)})
    assert order(0, 1) != whole
    assert order(1, 0) != whole
    first = torch.tensor(whole[0])
    positions = [read(rows).numbers.nan_to_num(-1).eq(row).all(1).nonzero()[0, 0].item() for row in first]
    ends = np.cumsum([piece.rows for piece in rows.pieces])
    pieces = sorted({int(np.searchsorted(ends, position, side="right")) for position in positions})
    assert len(pieces) < 8  # the rows of a batch come from the few pieces of a block,
    assert pieces[-1] - pieces[0] >= len(pieces)  # which do not follow each other in the files
    assert positions != sorted(positions)


def test_a_damaged_shard_is_reported(tmp_path: Path):
    rows, _ = rows_of(tmp_path)
    path = rows.folder / rows.pieces[-1].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: missing or damaged; delete the folder"):
        list(ShardLoader(type(rows)(rows.folder, rows.pieces, rows.blank), 16))
    shutil.rmtree(rows.folder)
    with pytest.raises(UserError, match="missing or damaged"):
        list(ShardLoader(rows, 16))


@pytest.mark.parametrize("name", ["dataset.json", "schema.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pieces": 3'])
def test_a_damaged_list_of_shards_is_reported(tmp_path: Path, name: str, content: str):
    files = write_files(tmp_path / "rows", 3)
    dataset = table(train=files, stream=True).dataset
    folder = dataset.splits["train"].folder
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=r"damaged .*; delete the folder, and it is made again"):
        _ = table(train=files, stream=True).dataset
    shutil.rmtree(folder)
    assert table(train=files, stream=True).dataset.schema == dataset.schema


def test_changed_files_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.data.file_states.MAX_HASHED_BYTES", 100)  # sizes, ends and times
    files = write_files(tmp_path / "rows", 2)
    first = table(train=files, stream=True).dataset
    again = table(train=files, stream=True).dataset
    assert again.splits["train"].folder == first.splits["train"].folder
    frame(seed=1).iloc[:200].to_parquet(Path(files) / "0.parquet")
    other = table(train=files, stream=True).dataset
    assert other.splits["train"].folder != first.splits["train"].folder
    assert other.schema.files != first.schema.files


def test_auto_streams_what_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for ending in ("parquet", "csv"):
        files = write_files(tmp_path / ending, 2, ending)
        assert isinstance(table(train=files).dataset.splits["train"], Batch)
        with monkeypatch.context() as patch:
            patch.setattr("mmoe.data.table_data.memory_size", lambda: 10_000)
            assert not isinstance(table(train=files).dataset.splits["train"], Batch)


def test_kinds_are_guessed_from_the_first_rows(tmp_path: Path):
    files = write_files(tmp_path / "rows", 2)
    given = options(train=files, stream=True, columns=None, tasks={"click": TASKS["click"]})
    ours, theirs = TableData(**given).dataset.schema, TableData(**given | {"stream": False}).dataset.schema
    assert ours.categorical == theirs.categorical


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": "yes"}, "data.stream=yes: must be true, false or auto"),
        ({"engine": "spark"}, "data.engine=spark: must be one of local, dask"),
        ({"dask_address": "tcp://127.0.0.1:1"}, "data.dask_address=tcp://127.0.0.1:1: needs engine=dask"),
        ({"columns": {"none": "numeric"}}, "must have a column 'none'"),
        ({"columns": {"city": "numeric"}}, "0.parquet, column city, row 1: must be a number"),
        ({"test": {"column": "plan", "value": "lead"}}, "data.test: must choose at least one test row"),
        (
            {"tasks": {"plan": {"column": "exposure", "kind": "count"}}},
            "0.parquet, column exposure, row 1: must be a count",
        ),
        (
            {"validation": {"fraction": 0.2, "by": "city"}},
            "must have a value, because data.validation.by needs one",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, train: Command, changes: dict[str, Any], message: str):
    write_yaml(train=write_files(tmp_path / "rows", 3), **({"stream": True, "cache_dir": "cache"} | changes))
    result = train("--config-dir", "conf", "data=mine", "hydra.run.dir=run")
    assert result.code == 2
    assert message in result.err.replace("\n", " ")
    assert result.err.strip().count("\n") == 0
    assert not Path("run").exists()


def test_a_column_that_any_rule_names_is_no_guessed_input(tmp_path: Path):
    files = write_files(tmp_path / "rows", 1)
    tasks = {"click": TASKS["click"]}
    by_user = {"fraction": 0.5, "by": "user", "of": "test"}
    given = {"train": files, "test": files, "validation": by_user, "columns": None, "tasks": tasks}
    schema = table(**given).dataset.schema
    assert "user" not in schema.input_columns
    # Another rule does not bring it back for rows that the schema encodes.
    given |= {"validation": {"fraction": 0.5, "of": "test"}, "schema": schema}
    assert "user" not in table(**given).dataset.schema.input_columns
    data = table(**given)
    assert data.dataset.schema.input_columns == schema.input_columns
    assert "user" not in data.columns
    # A rule for other rows may name an input, which the test rows need as before.
    given |= {"validation": {"column": "plan", "value": "gold"}}
    other = table(**given)
    assert len(read(other.dataset.splits["test"]).labels) == N
    assert list(other.columns) == list(data.columns)


def test_a_rule_that_takes_all_rows_leaves_none_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.data.table_jobs.MAX_SHUFFLED_ROWS", 100)
    files = write_files(tmp_path / "rows", 2)
    rules = {"test": {"column": "all", "value": 1}, "validation": {"last": 0.1, "by": "code"}}
    whole = frame().assign(all=1, code=range(N))
    whole.to_parquet(Path(files) / "0.parquet")
    whole.to_parquet(Path(files) / "1.parquet")
    with pytest.raises(UserError, match=r"data\.validation: must choose at least one validation row"):
        _ = table(train=files, stream=True, **rules).dataset


@pytest.mark.parametrize("split", [{"fraction": 0.5}, {"column": "y", "value": 1}])
def test_a_wrong_label_has_its_place_among_all_rows(tmp_path: Path, split: dict[str, Any]):
    """Rows of other splits stand before it."""
    y = np.arange(300) % 2
    labels = np.where(np.arange(300) == 250, -1.0, 3.0)
    folder = tmp_path / "rows"
    folder.mkdir()
    pd.DataFrame({"x": np.arange(300.0), "y": y, "n": labels}).to_csv(folder / "a.csv", index=False)
    tasks = {"n": {"column": "n", "kind": "count"}}
    given = {
        "train": str(folder),
        "columns": {"x": "numeric"},
        "tasks": tasks,
        "main_task": "n",
        "test": split,
    }
    for stream in (False, True):
        with pytest.raises(UserError, match=r"a\.csv, line 252, column 3 \(n\): must be a count"):
            _ = table(**given | {"test": split}, stream=stream).dataset


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("7", "TRUE", [7.0, 1.0]),  # text in one block alone
        ("NaN", "5", [np.nan, 5.0]),  # a missing number, which int64 cannot hold
    ],
)
@pytest.mark.parametrize("num_files", [1, 2])
def test_blocks_of_numbers_have_one_type(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    expected: list[float],
    num_files: int,
):
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 200)
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [f"{value},{i % 2}\n" for value in (first, second) for i in range(150)]
    for i in range(num_files):
        own = lines[i * len(lines) // num_files : (i + 1) * len(lines) // num_files]
        (folder / f"{i}.csv").write_text("x,y\n" + "".join(own))
    given = {
        "train": str(folder),
        "columns": {"x": "numeric"},
        "tasks": {"y": {"column": "y"}},
        "main_task": "y",
    }
    whole, streamed = (table(**given, stream=stream).dataset for stream in (False, True))
    assert_same(whole, streamed)
    numbers = read(streamed.splits["train"]).numbers[:, 0]
    assert set(numbers.nan_to_num(-1).tolist()) == set(np.nan_to_num(expected, nan=-1))


@pytest.mark.parametrize("max_shuffled", [table_splits.MAX_SHUFFLED_ROWS, 100])
@pytest.mark.parametrize("rule", [{"fraction": 0.2, "by": "code"}, {"last": 0.2, "by": "code"}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_missing_value_that_a_split_needs_has_a_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    stream: bool,
    rule: dict[str, Any],
    max_shuffled: int,
):
    monkeypatch.setattr(table_splits, "MAX_SHUFFLED_ROWS", max_shuffled)
    monkeypatch.setattr("mmoe.data.table_jobs.MAX_SHUFFLED_ROWS", max_shuffled)
    files = write_files(tmp_path / "rows", 2, ending)
    path = Path(files) / f"1.{ending}"  # the last file; it has several partitions and chunks
    rows = frame().iloc[N // 2 :].assign(code=np.where(np.arange(N // 2) == 187, np.nan, 3))
    first = frame().iloc[: N // 2].assign(code=np.arange(N // 2) % 7)
    if ending == "csv":
        rows.to_csv(path, index=False)
        first.to_csv(Path(files) / "0.csv", index=False)
        place = rf"1.csv, line 189, column {len(rows.columns)} \(code\)"
    else:
        rows.to_parquet(path, row_group_size=70, index=False)
        first.to_parquet(Path(files) / "0.parquet", row_group_size=70, index=False)
        place = "1.parquet, column code, row 188"
    with pytest.raises(UserError, match=f"{place}: must have a value, because data.test.by needs one"):
        _ = table(train=files, test=rule, stream=stream).dataset


QUICK = ["--config-dir", "conf", "data=mine", "figures=false", "logger=none", "data.batch_size=16"]


def test_training_evaluation_and_predictions(tmp_path: Path, train: Command, command: Any):
    write_yaml(train=write_files(tmp_path / "rows", 3), stream=True, batch_size=16, cache_dir="cache")
    assert train(*QUICK, "hydra.run.dir=run", "trainer.max_epochs=2").code == 0
    run = mmoe.load("run")
    metrics = run.metrics
    written = run.predictions
    assert len(written) == metrics["num_rows"]["test"] == 100
    raw = frame().iloc[written["row"].to_numpy()]
    assert (written["click_label"].to_numpy() == raw["clicked"].to_numpy()).all()
    again = run.predict(raw)
    np.testing.assert_allclose(again["click_probability"], written["click_probability"], rtol=1e-4)
    result = run.evaluate("test", resamples=20)["checkpoints"][0]
    assert result["metrics"]["click"] == pytest.approx(metrics["test"]["click"], rel=1e-6)
    assert len(run.gates("test")["click"]) == 100
    other = run.evaluate("test", data={"test": str(tmp_path / "rows")}, resamples=0)
    assert other["num_rows"] == N


def test_a_killed_training_is_resumed_to_the_bit(tmp_path: Path, train: Command):
    write_yaml(train=write_files(tmp_path / "rows", 3), stream=True, batch_size=16, cache_dir="cache")
    arguments = [*QUICK, "trainer.max_epochs=3", "callbacks.last.every_n_steps=8", "model.dropout=0.2"]
    command = [sys.executable, "-m", "mmoe.train", *arguments, "hydra.run.dir=whole"]
    subprocess.run(command, check=True, capture_output=True)
    stopped(30, signal.SIGKILL, *arguments, "hydra.run.dir=cut")  # in mid-epoch; an epoch has 17 steps
    assert (
        subprocess.run([sys.executable, "-m", "mmoe.train", "resume=cut"], capture_output=True).returncode
        == 0
    )
    assert_equal_runs(Path("whole"), Path("cut"))


def test_many_rows_are_measured_in_bounded_memory(
    tmp_path: Path, train: Command, monkeypatch: pytest.MonkeyPatch
):
    sizes = {"batch_size": 64, "eval_batch_size": 100}
    write_yaml(train=write_files(tmp_path / "rows", 3, rows=3000), stream=True, cache_dir="cache", **sizes)
    one = [*QUICK, "trainer.max_epochs=1"]
    assert train(*one, "hydra.run.dir=exact").code == 0
    exact = mmoe.load("exact")
    theirs = exact.evaluate("test", resamples=80)["checkpoints"][0]["intervals"]
    monkeypatch.setattr("mmoe.training.epoch_outputs.MAX_ROWS", 150)
    monkeypatch.setattr("mmoe.training.running_metrics.SAMPLE_ROWS", 400)
    assert train(*one, "hydra.run.dir=binned").code == 0
    binned = mmoe.load("binned")
    for split in ("val", "test"):
        for task, values in exact.metrics[split].items():
            for name, value in values.items():
                near = 2e-4 if name in ("auroc", "average_precision") else 1e-9
                assert binned.metrics[split][task][name] == pytest.approx(value, abs=near, rel=1e-6), name
    pd.testing.assert_frame_equal(exact.predictions, binned.predictions, rtol=1e-4)
    intervals = binned.evaluate("test", resamples=80)["checkpoints"][0]["intervals"]
    for task, metric in (("click", "auroc"), ("visits", "mae"), ("click", "log_loss")):
        ours, other = np.ptp(intervals[task][metric]), np.ptp(theirs[task][metric])
        assert 0.5 < ours / other < 2, (task, metric)
        assert intervals[task][metric][0] < exact.metrics["test"][task][metric] < intervals[task][metric][1]


def test_loaders_of_both_kinds_give_the_same_ordered_batches(tmp_path: Path):
    rows, whole = rows_of(tmp_path)
    for ours, theirs in zip(ShardLoader(rows, 30), RowLoader(whole, 30), strict=True):
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(tmp_path: Path, train: Command):
    write_yaml(train=write_files(tmp_path / "rows", 3), stream=True, batch_size=16, cache_dir="cache")
    assert train(*QUICK, "hydra.run.dir=one", "trainer.max_epochs=1").code == 0
    arguments = [*QUICK, "hydra.run.dir=two", "trainer.max_epochs=1", "trainer=ddp_cpu"]
    command = [*TORCHRUN, "mmoe.train", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    one, two = mmoe.load("one"), mmoe.load("two")
    assert two.metrics["num_rows"] == one.metrics["num_rows"]
    again = two.evaluate("test", resamples=0)["checkpoints"][0]["metrics"]
    for task, values in two.metrics["test"].items():
        for name, value in values.items():
            assert value == pytest.approx(again[task][name], rel=1e-6), name
    assert (one.predictions["row"] == two.predictions["row"]).all()


def test_training_metrics_of_many_rows_are_those_of_the_last_ones(
    tmp_path: Path, train: Command, monkeypatch: pytest.MonkeyPatch
):
    write_yaml(train=write_files(tmp_path / "rows", 3), stream=True, batch_size=16, cache_dir="cache")
    monkeypatch.setattr("mmoe.training.epoch_outputs.MAX_ROWS", 100)
    assert train(*QUICK, "trainer.max_epochs=1", "logger=csv", "hydra.run.dir=run").code == 0
    columns = pd.read_csv("run/csv/metrics.csv").columns
    assert {"train/click/auroc", "val/click/auroc"} <= set(columns)


@pytest.mark.parametrize("validations", [[], ["+trainer.val_check_interval=12"]])
def test_a_divergence_in_many_rows_is_found_where_it_began(
    tmp_path: Path, train: Command, monkeypatch: pytest.MonkeyPatch, validations: list[str]
):
    write_yaml(train=write_files(tmp_path / "rows", 3), stream=True, batch_size=16, cache_dir="cache")
    diverging = [*QUICK, "trainer.max_epochs=1", "learner.optimizer.lr=1e20", *validations]
    errors = {}
    for max_rows in (40, 10_000):  # with 40, training outputs are dropped, and validations keep statistics
        monkeypatch.setattr("mmoe.training.epoch_outputs.MAX_ROWS", max_rows)
        done = train(*diverging, f"hydra.run.dir=run{max_rows}")
        assert done.code == 2
        errors[max_rows] = done.err.replace(f"run{max_rows}/", "")
    assert "training diverged in step 2 " in errors[40]
    assert errors[40] == errors[10_000]


def test_the_encoding_says_when_it_begins_and_ends(train: Command):
    pd.DataFrame({"a": [0.5, 2, 7, 1.5] * 50, "y": [0, 1] * 100}).to_csv("rows.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    text = "_target_: mmoe.data.table_data.TableData\ntrain: rows.csv\ntest: {fraction: 0.2}\n"
    text += "tasks: {y: {column: y}}\nstream: true\ncache_dir: cache\n"
    Path("conf/data/mine.yaml").write_text(text)
    arguments = ["--config-dir", "conf", "data=mine", "logger=none", "trainer.max_epochs=1"]
    first = train(*arguments)
    assert first.code == 0, first.err
    assert first.out.startswith("encoding the rows of 1 file in shards, once: ")
    assert "encoded 200 rows in " in first.out
    assert "encod" not in train(*arguments).out
