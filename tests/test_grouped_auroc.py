"""AUROC within groups: the metric, and tables with `group_by`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

import mmoe
from mmoe.data.table_data import TableData
from mmoe.errors import ArgumentError, UserError
from mmoe.metrics.grouped_auroc import GroupedAUROC, grouped_auroc


def weighted_mean(group: np.ndarray, label: np.ndarray, probability: np.ndarray) -> float:
    """The definition, with sklearn."""
    values, weights = [], []
    for name in np.unique(group):
        rows = group == name
        if len(set(label[rows])) == 2:
            values.append(roc_auc_score(label[rows], probability[rows]))
            weights.append(rows.sum())
    return float(np.average(values, weights=weights))


def draw(count: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    group, label = random.integers(-20, 20, count) * 2**40, random.integers(0, 2, count)
    probability = (label * 0.3 + random.random(count)).round(1)  # with ties
    label[group == 0] = 1  # one class: does not count
    return group, label, probability


def test_it_is_the_mean_of_the_groups_weighted_by_rows():
    group, label, probability = draw()
    g, y, p = map(torch.from_numpy, (group, label, probability))
    assert grouped_auroc(p, y, g).item() == pytest.approx(weighted_mean(group, label, probability))
    one = torch.zeros_like(g)
    assert grouped_auroc(p, y, one).item() == pytest.approx(roc_auc_score(label, probability))
    order = torch.randperm(len(g))
    assert grouped_auroc(p[order], y[order], g[order]) == grouped_auroc(p, y, g)
    for nothing in (torch.ones_like(y), y[:0]):
        assert grouped_auroc(p[: len(nothing)], nothing, g[: len(nothing)]).isnan()


def test_the_metric_joins_batches():
    g, y, p = map(torch.from_numpy, draw())
    metric = GroupedAUROC()
    for part in torch.arange(len(g)).split(300):
        metric.update(p[part], y[part], g[part])
    assert metric.compute() == grouped_auroc(p, y, g)
    metric.reset()
    metric.update(p, y)
    assert metric.compute().isnan()


def frame(seed: int = 0, count: int = 600) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    user, amount = random.integers(0, 25, count), random.normal(size=count)
    click = random.random(count) < 1 / (1 + np.exp(-amount - user / 10 + 1))
    rows = pd.DataFrame({"user": user, "amount": amount, "clicked": click.astype(int), "spend": amount * 2})
    return rows.assign(shop=[f"s{i % 3}" for i in range(count)], alone=np.arange(count))


def options(**changes: Any) -> dict[str, Any]:
    tasks = {
        "spend": {"column": "spend", "kind": "regression"},
        "click": {"column": "clicked"},
        "rare": {"column": "clicked", "where": {"shop": ["s0"]}},
    }
    split = {"validation": {"fraction": 0.3}, "test": {"fraction": 0.3}}
    given = {"train": "train.csv", **split, "columns": {"amount": "numeric"}, "tasks": tasks}
    return given | {"group_by": "user"} | changes


@pytest.fixture
def train_mine(train: Command) -> Command:
    """Train with the options as they were written to conf/data/mine.yaml."""
    frame().to_csv("train.csv", index=False)
    write_yaml()
    quick = ["trainer.max_epochs=2", "logger=none", "hydra.run.dir=run"]
    return lambda *overrides: train("--config-dir", "conf", "data=mine", *quick, *overrides)


def write_yaml(**changes: Any) -> None:
    Path("conf/data").mkdir(parents=True, exist_ok=True)
    config = {"_target_": "mmoe.data.table_data.TableData", **options(**changes)}
    OmegaConf.save(OmegaConf.create(config), "conf/data/mine.yaml")


def expected(run: mmoe.Run, column: str, task: str = "click") -> float:
    """The metric from the predictions and the rows of the file."""
    found = run.predictions
    group = frame()[column].to_numpy()[found["row"]]
    known = found[f"{task}_label"].notna().to_numpy()
    label, probability = found[f"{task}_label"].to_numpy(), found[f"{task}_probability"].to_numpy()
    return weighted_mean(group[known], label[known], probability[known])


def test_a_training_measures_and_monitors_it(train_mine: Command, command: Any):
    done = train_mine("monitor=val/click/grouped_auroc")
    assert done.code == 0, done.err
    run = mmoe.load("run")
    assert run.metrics["monitor"] == "val/click/grouped_auroc"
    for task in ("click", "rare"):
        value = pytest.approx(expected(run, "user", task))
        assert run.metrics["test"][task]["grouped_auroc"] == value
        assert run.history[f"val/{task}/grouped_auroc"].notna().all()
    assert run.metrics["val"]["click"]["grouped_auroc"] == run.history["val/click/grouped_auroc"].max()
    assert "grouped_auroc" not in run.metrics["test"]["spend"]
    assert command("evaluate")("run=run", "resamples=5", "out=same.json").code == 0
    assert command("evaluate")("run=run", "resamples=5", "data.group_by=shop", "out=shop.json").code == 0
    for file, column in (("same", "user"), ("shop", "shop")):
        (line,) = json.loads(Path(f"{file}.json").read_text())["checkpoints"]
        assert line["metrics"]["click"]["grouped_auroc"] == pytest.approx(expected(run, column))


def test_evaluate_groups_the_rows_of_a_training_without_groups(train_mine: Command):
    config = {key: value for key, value in options().items() if key != "group_by"}
    text = OmegaConf.to_yaml(OmegaConf.create({"_target_": "mmoe.data.table_data.TableData", **config}))
    Path("conf/data/mine.yaml").write_text(text)
    assert train_mine().code == 0
    run = mmoe.load("run")
    assert "grouped_auroc" not in run.metrics["test"]["click"]
    (line,) = run.evaluate(data={"group_by": "user"}, resamples=0)["checkpoints"]
    assert line["metrics"]["click"]["grouped_auroc"] == pytest.approx(expected(run, "user"))
    frame(1).drop(columns="user").to_csv("later.csv", index=False)
    with pytest.raises(UserError, match=r"later.csv: must have a column 'user'"):
        run.evaluate(data={"group_by": "user", "test": "later.csv"}, resamples=0)


def test_replicas_have_the_metric(train_mine: Command):
    assert train_mine("replicas=2", "monitor=val/click/grouped_auroc").code == 0
    runs = mmoe.load("run").metrics["runs"]
    assert all(0 < one["test"]["click"]["grouped_auroc"] < 1 for one in runs)
    predictions = mmoe.load("run").predictions
    group = frame()["user"].to_numpy()[predictions["row"]]
    label = predictions["click_label"].to_numpy()
    value = weighted_mean(group, label, predictions["click_probability_1"].to_numpy())
    assert runs[1]["test"]["click"]["grouped_auroc"] == pytest.approx(value)


def test_groups_are_the_same_in_all_files_and_in_the_cache():
    frame().to_csv("train.csv", index=False)
    frame(1).to_parquet("test.parquet")
    frame(1).to_csv("test.csv", index=False)
    first = TableData(**options(test="test.csv")).dataset
    again = TableData(**options(test="test.csv")).dataset
    other = TableData(**options(test={"fraction": 0.3})).dataset
    found = first.splits["test"].groups
    assert torch.equal(found, again.splits["test"].groups)
    assert first.splits["train"].groups is None
    by_user = dict(zip(frame(1)["user"], found[:, 0].tolist(), strict=True))
    users = frame()["user"].iloc[other.positions["test"].numpy()]
    assert [by_user[user] for user in users] == other.splits["test"].groups[:, 0].tolist()
    assert len(set(by_user.values())) == len(by_user)


BAD = {
    "a column that the file lacks": ({"group_by": "usr"}, "train.csv: must have a column 'usr'"),
    "missing values": (
        {"group_by": "gap"}, r"train.csv, line [0-9]+, column 7 \(gap\): must have a value, because group_by",
    ),
    "no binary task": (
        {"tasks": {"spend": {"column": "spend", "kind": "regression"}}}, "data.group_by=user: needs a binary",
    ),
    "no text": ({"group_by": ["user"]}, r"data.group_by=\['user'\]: must be text"),
    "groups of one row": (
        {"group_by": "alone", "main_task": "click"},
        "monitor=val/click/grouped_auroc: .* the validation rows have no alone with labels of both classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gives_one_line(train_mine: Command, what: str):
    changes, message = BAD[what]
    rows = frame()
    rows.assign(gap=rows["user"].where(rows["amount"] < 1)).to_csv("train.csv", index=False)
    write_yaml(**changes)
    done = train_mine("monitor=val/click/grouped_auroc")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert pd.Series([done.err]).str.contains(message).all(), done.err
    assert not Path("run").exists()


def test_a_table_of_a_frame_takes_groups():
    table = mmoe.Table(frame(), {"click": "clicked"}, group_by="user", columns={"spend": None})
    run = mmoe.fit(table, "ours", "trainer.max_epochs=1", "logger=none", "figures=false")
    assert 0 < run.metrics["test"]["click"]["grouped_auroc"] < 1
    with pytest.raises(ArgumentError, match="group_by=usr: must be one of"):
        mmoe.Table(frame(), {"click": "clicked"}, group_by="usr")
