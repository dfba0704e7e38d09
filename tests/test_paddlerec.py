from pathlib import Path

import numpy as np
import pytest
from conftest import config

from mmoe.build import build
from mmoe.training.preparation import build_network


@pytest.fixture
def paddlerec_dir(tmp_path: Path) -> Path:
    """train_all/ with two files and test_all/ with one: 11 numbers, then one-hot columns of 13 features."""
    random = np.random.default_rng(0)
    for split, name, count in (("train_all", "a", 70), ("train_all", "b", 50), ("test_all", "a", 80)):
        onehot = np.zeros((count, 488))
        for start, stop in zip(range(0, 481, 40), [*range(40, 481, 40), 488], strict=True):
            onehot[np.arange(count), random.integers(start, stop, count)] = 1
        numbers = np.round(random.normal(size=(count, 11)) * 100, 2)
        labels = random.integers(0, 2, (count, 2))
        folder = tmp_path / split
        folder.mkdir(exist_ok=True)
        np.savetxt(folder / f"{name}.csv", np.c_[labels, numbers, onehot], delimiter=",", fmt="%g")
    return tmp_path


def overrides(folder: Path) -> list[str]:
    return ["data=paddlerec", f"data.dir={folder}", "inputs=standard"]


def test_the_499_inputs_are_restored(paddlerec_dir: Path):
    c = config(*overrides(paddlerec_dir))
    data = build(c, "data")
    inputs = build(c, "inputs", schema=data.schema)
    assert inputs.num_outputs == 499
    rows = data.dataset.splits["train"]
    levels = [int(level) for column in data.schema.categorical for level in column.levels]
    numbers = [int(column.name.removeprefix("input_")) for column in data.schema.numeric]
    assert sorted(levels + numbers) == list(range(1, 500))
    original = np.concatenate(
        [np.loadtxt(paddlerec_dir / f"train_all/{name}.csv", delimiter=",") for name in "ab"]
    )
    x = inputs.categorical(rows.levels)
    assert np.array_equal(x.numpy(), original[:, [level + 1 for level in levels]])
    np.testing.assert_allclose(rows.numbers, original[:, [n + 1 for n in numbers]], rtol=1e-6)
    assert np.array_equal(rows.labels.numpy(), original[:, [1, 0]])
    assert [task.name for task in data.schema.tasks] == ["income", "marital"]


def test_one_hot_columns_become_few_categorical_columns(paddlerec_dir: Path):
    data = build(config(*overrides(paddlerec_dir)), "data")
    assert 13 <= len(data.schema.categorical) < 60
    assert data.schema.num_rows == {"train": 120, "val": 40, "test": 40}


def test_test_rows_do_not_decide_which_inputs_are_binary(paddlerec_dir: Path):
    path = paddlerec_dir / "test_all/a.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4].rsplit(",", 1)[0] + ",7", *lines[5:]]))
    with pytest.raises(ValueError, match=r"a\.csv, row 5, column 501 \(input_499\): must be 0 or 1, is 7"):
        build(config(*overrides(paddlerec_dir)), "data").schema  # noqa: B018


def test_the_inputs_do_not_depend_on_the_grouping(paddlerec_dir: Path):
    before = build(config(*overrides(paddlerec_dir)), "data")
    assert len(before.schema.categorical) < 60
    path = paddlerec_dir / "test_all/a.csv"
    label, *values = path.read_text().splitlines()[0].split(",")
    with path.open("a") as file:
        file.write(",".join([label, *values[:12], *["1"] * 488]) + "\n")
    after = build(config(*overrides(paddlerec_dir)), "data")
    assert len(after.schema.categorical) == 488
    x = []
    for data in (before, after):
        inputs = build(config(*overrides(paddlerec_dir)), "inputs", schema=data.schema)
        x.append(inputs(*data.dataset.splits["train"][:2]))
    assert np.array_equal(*x)


def test_it_trains(paddlerec_dir: Path):
    c = config(*overrides(paddlerec_dir))
    data = build(c, "data")
    batch = next(iter(data.train_dataloader()))
    output = build_network(c, data.schema)(batch.levels, batch.numbers)
    assert output.logits.shape == (120, 2)
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "test_all/a.csv").unlink(), "test_all: must hold at least one"),
        (lambda d: (d / "test_all/a.csv").write_text("1,2,3\n"), "line 1: must have 501 .* has 3"),
        (lambda d: (d / "test_all/a.csv").write_text("2" + ",0" * 500), r"row 1, column 1 .*must be 0"),
        (lambda d: (d / "test_all/a.csv").write_text("x" + ",0" * 500), r"line 1, column 1 .*finite"),
    ],
)  # fmt: skip
def test_mistakes(paddlerec_dir: Path, break_it, message: str):
    break_it(paddlerec_dir)
    with pytest.raises(ValueError, match=message):
        build(config(*overrides(paddlerec_dir)), "data").schema  # noqa: B018


def test_a_directory_must_be_given():
    with pytest.raises(ValueError, match=r"^data\.dir: must be the directory"):
        build(config("data=paddlerec"), "data").schema  # noqa: B018
    with pytest.raises(ValueError, match=r"^data\.main_task=sex: must be one of"):
        build(config("data=paddlerec", "data.main_task=sex"), "data")


def test_scales_come_from_the_training_files(paddlerec_dir: Path):
    data = build(config(*overrides(paddlerec_dir)), "data")
    numbers = data.dataset.splits["train"].numbers.double()
    for i, column in enumerate(data.schema.numeric):
        assert column.mean == pytest.approx(numbers[:, i].mean().item())
        assert column.std == pytest.approx(numbers[:, i].std(correction=0).item())
