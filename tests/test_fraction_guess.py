"""Small tables: `describe` drafts shares of validation and test rows with both classes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Command
from omegaconf import OmegaConf
from test_describe import values

import mmoe
from mmoe.data.fraction_guess import Fractions, guess_fractions, tasks_with_both_classes
from mmoe.data.table_data import TableData
from mmoe.data.task_guess import TaskGuess, guess_task

USUAL = Fractions(0.1, 0.2)


FEW = """
_target_: mmoe.data.table_data.TableData
train: rows.csv
validation: {column: part, value: val}
test: {column: part, value: test}
columns: {amount: numeric}
tasks: {often: {column: often}}
main_task: often
"""


def task(name: str, *positive_rows: int, count: int = 100) -> TaskGuess:
    return guess_task(name, values(name, np.isin(np.arange(count), positive_rows).astype(int)))


def splits(path: str, config: dict) -> dict[str, np.ndarray]:
    """The labels of each split, as training chooses them."""
    found = TableData(train=path, columns={"x": "numeric"}, tasks={"t": {"column": "t"}}, **config).dataset
    return {split: rows.labels[:, 0].numpy() for split, rows in found.splits.items()}


@pytest.mark.parametrize("has_test_file", [False, True])
def test_the_shares_are_the_smallest_with_both_classes_in_each_split(has_test_file: bool):
    draw, larger = np.random.default_rng(0), 0
    for _ in range(12):
        one = task("t", *draw.choice(100, 6, False))
        found = guess_fractions([one], "t", 100, has_test_file)
        pd.DataFrame({"x": np.arange(100), "t": one.positive.astype(int)}).to_csv("rows.csv", index=False)
        pd.DataFrame({"x": [0, 1], "t": [0, 1]}).to_csv("test.csv", index=False)
        test = "test.csv" if has_test_file else {"fraction": found.test}
        drafted = splits("rows.csv", {"validation": {"fraction": found.validation}, "test": test})
        assert all(0 < labels.mean() < 1 for labels in drafted.values())
        assert (found == USUAL) == (tasks_with_both_classes([one], USUAL, 100, has_test_file) == {"t"})
        if found != USUAL:
            larger += 1
            assert found.reason == "with less, a split would have only one class of t"
            smaller = found._replace(validation=round(found.validation - 0.1, 1))
            if smaller.validation:
                assert tasks_with_both_classes([one], smaller, 100, has_test_file) == set()
    assert 0 < larger < 12


def test_the_main_task_goes_first_and_impossible_tasks_change_nothing():
    often, rare = task("often", *range(50)), task("rare", 7)
    assert guess_fractions([often, rare], "often", 100, False) == USUAL._replace(one_class=("rare",))
    assert guess_fractions([rare], "rare", 100, False) == USUAL._replace(one_class=("rare",))
    few = task("few", *range(0, 100, 13))
    for main in ("often", "few"):
        found = guess_fractions([often, few], main, 100, False)
        assert tasks_with_both_classes([often, few], found, 100, False) == {"often", "few"}
    number = guess_task("n", values("n", np.linspace(0, 1, 100)))
    assert guess_fractions([number], "n", 100, False) == USUAL
    tiny = guess_fractions([number], "n", 6, False)
    assert tiny == Fractions(0.2, 0.3, "with less, a split would be empty") or tiny.reason.endswith("empty")


def test_describe_drafts_what_trains(command: Callable[[str], Command], train: Command):
    count = 60
    click = np.isin(np.arange(count), [3, 17, 30, 44, 58]).astype(int)
    rows = pd.DataFrame({"amount": np.random.default_rng(0).normal(size=count), "click": click})
    rows.to_csv("rows.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    assert command("describe")("rows.csv", "tasks=[click]", "out=conf/data/mine.yaml").code == 0
    text = Path("conf/data/mine.yaml").read_text()
    assert "# with less, a split would have only one class of click" in text
    quick = ["--config-dir", "conf", "data=mine", "trainer.max_epochs=1", "logger=none"]
    assert train(*quick, "hydra.run.dir=run").code == 0
    assert np.isfinite(list(mmoe.load("run").metrics["val"]["click"].values())).all()
    wrong = train(*quick, "data.validation={fraction: 0.02}", "data.test={fraction: 0.02}")
    assert wrong.code == 2
    expected = "all equal; try 'data.validation={fraction: 0.4}' or monitor=val/click/log_loss\n"
    assert wrong.err.endswith(expected)
    assert train(*quick, "data.validation={fraction: 0.03}", "monitor=val/click/log_loss").code == 0


def test_describe_says_that_a_split_must_have_one_class(command: Callable[[str], Command], train: Command):
    rows = pd.DataFrame({"amount": np.random.default_rng(0).normal(size=100), "often": [0, 1] * 50})
    rows["rare"] = np.isin(np.arange(100), [3, 70]).astype(int)
    rows.to_csv("rows.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    done = command("describe")("rows.csv", "tasks=[rare,often]", "out=conf/data/mine.yaml")
    assert "monitor=val/rare/log_loss" in done.out
    text = Path("conf/data/mine.yaml").read_text()
    assert text.count("with these fractions, a split has none; to train, add monitor=val/rare/log_loss") == 1
    quick = ["--config-dir", "conf", "data=mine", "trainer.max_epochs=1", "logger=none"]
    assert train(*quick, "monitor=val/rare/log_loss").code == 0
    wrong = train(*quick, "data.validation={fraction: 0.4}")
    assert wrong.err.endswith("all equal; try monitor=val/rare/log_loss\n")  # no larger fraction
    done = command("describe")("rows.csv", "tasks=[often]")
    assert "a split has none" not in done.out


def test_few_validation_labels_are_warned_of(train: Command):
    """12 validation rows have 6 labels of each class; 30 rows have 15."""
    rows = pd.DataFrame({"amount": np.random.default_rng(0).normal(size=60), "often": [0, 1] * 30})
    rows["part"] = ["val"] * 12 + ["test"] * 10 + ["train"] * 38
    rows.to_csv("rows.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    Path("conf/data/mine.yaml").write_text(FEW)
    quick = ["--config-dir", "conf", "data=mine", "trainer.max_epochs=1", "logger=none"]
    few = train(*quick)
    assert few.code == 0, few.err
    warning = (
        "task often: only 6 validation labels of the rarer class, so the epoch is chosen nearly by chance;"
    )
    assert warning in few.out
    assert "nearly by chance" not in train(*quick, "monitor=val/often/log_loss").out
    rule = "'~data.validation' '+data.validation={...}' would replace all of data.validation"
    wrong = train(*quick, "data.validation={fraction: 0.5}")
    assert wrong.code == 2
    assert rule in wrong.err


@pytest.mark.parametrize(
    ("name", "tasks"), [("ali_ccp", "[click,purchase]"), ("aliexpress", "[click,conversion]")]
)
def test_real_samples_train_as_drafted(
    command: Callable[[str], Command], train: Command, name: str, tasks: str
):
    folder = os.environ.get("MMOE_TABLES_DIR")
    file = Path(folder or "", "recsys_samples", f"{name}_train_sample.csv")
    if not folder or not file.exists():
        pytest.skip("MMOE_TABLES_DIR has no recsys_samples: no real tables here")
    Path("conf/data").mkdir(parents=True)
    assert command("describe")(str(file), f"tasks={tasks}", "out=conf/data/mine.yaml").code == 0
    assert OmegaConf.load("conf/data/mine.yaml").validation.fraction >= 0.1
    done = train("--config-dir", "conf", "data=mine", "trainer.max_epochs=1", "logger=none")
    assert done.code == 0, done.err
