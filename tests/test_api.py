"""`mmoe.Table` and `mmoe.fit`: what they write and remove, and wrong arguments."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import mmoe
from mmoe.cli.overrides import quote_override
from mmoe.compare import compare
from mmoe.data.table_data import TableData, default_settings
from mmoe.describe import train_command
from mmoe.errors import ArgumentError, UserError

QUICK = ("trainer.max_epochs=1", "logger=none", "figures=false", "card=false")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def rows(count: int = 300, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    amount = random.normal(size=count)
    label = (random.random(count) < 1 / (1 + np.exp(-amount))).astype(int)
    group = random.choice(["a", "b", "c"], count)
    return pd.DataFrame({"amount": amount, "group": group, "y": label})


def table(**options: Any) -> mmoe.Table:
    return mmoe.Table(rows(), **({"tasks": ["y"]} | options))


def files() -> dict[str, bytes]:
    """All files below the working directory, with their contents."""
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def one_line(error: BaseException) -> str:
    """The message of a UserError of one short line."""
    assert isinstance(error, UserError)
    assert "\n" not in str(error)
    assert len(str(error)) < 250
    return str(error)


# Trainings that fail while they are composed, before and after the rows are read, and as a run folder.
FAILING = (
    "model.num_exprts=4",
    "trainer.max_epochs=-5",
    "monitor=val/y/nothing",
    "trainer.val_check_interval=99999",
)


@pytest.mark.parametrize("override", FAILING)
@pytest.mark.parametrize("folder", [".", "runs/mine"])
def test_a_failed_fit_removes_only_what_it_wrote(folder: str, override: str):
    Path(folder, "data").mkdir(parents=True)
    rows(5).to_parquet(Path(folder, "data", "mine.parquet"))
    Path(folder, "notes.txt").write_text("mine")
    before = files()
    with pytest.raises(UserError):
        mmoe.fit(table(test=rows(50, 1)), folder, *QUICK, override)
    assert files() == before


@pytest.mark.parametrize("override", FAILING)
def test_a_failed_fit_removes_only_folders_that_it_made(override: str):
    Path("mine").mkdir()
    for folder in ("mine", "runs/new", "mine/new"):
        with pytest.raises(UserError):
            mmoe.fit(table(), folder, *QUICK, override)
        assert [path.name for path in Path().rglob("*")] == ["mine"]


def test_a_failed_fit_on_files_leaves_no_folder():
    rows().to_csv("rows.csv", index=False)
    with pytest.raises(UserError):
        mmoe.fit(mmoe.Table("rows.csv", ["y"]), "runs/new", *QUICK, "trainer.max_epochs=-5")
    assert [path.name for path in Path().rglob("*")] == ["rows.csv"]


def test_an_error_names_the_frame():
    frame = pd.DataFrame({"a": [1.0, 1e39] * 20, "y": [0, 1] * 20})
    table = mmoe.Table(frame, tasks=["y"], columns={"a": "numeric"})
    with pytest.raises(UserError, match=r"^DataFrame train, column a, row 2: must be a finite number"):
        mmoe.fit(table, "run")


def test_a_bug_in_a_training_removes_the_rows_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.training.preparation.prepare", lambda *_: int("bug"))
    with pytest.raises(ValueError, match="bug"):
        mmoe.fit(table(), "run", *QUICK)
    assert not Path("run").exists()


def test_a_disk_that_fills_up_keeps_no_rows(monkeypatch: pytest.MonkeyPatch):
    def fill_up(path: Path, save: Any) -> None:
        if path.name == "test.parquet":
            raise OSError(28, os.strerror(28), str(path))
        save(path)

    monkeypatch.setattr(
        "mmoe.api.write", lambda path, save: (path.parent.mkdir(exist_ok=True), fill_up(path, save))
    )
    with pytest.raises(OSError, match="No space left"):
        mmoe.fit(table(test=rows(50, 1)), "run", *QUICK)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/train.parquet",
        "data/test.parquet",
        "schema.json",
        "card.md",
        "config.yaml",
        "checkpoints",
        "figures",
    ],
)
def test_fit_overwrites_no_file(name: str):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("mine")
    with pytest.raises(UserError) as raised:
        mmoe.fit(table(test=rows(50, 1)), ".", *QUICK)
    assert one_line(raised.value).startswith("folder=.: must not hold ")
    assert name in str(raised.value) or name == "config.yaml"
    assert files() == {name: b"mine"}


def test_a_file_that_the_run_does_not_write_is_no_obstacle():
    Path("data").mkdir()
    Path("data/test.parquet").write_text("mine")  # the test rows are taken from the training rows
    mmoe.fit(table(), ".", *QUICK)
    assert Path("data/test.parquet").read_text() == "mine"


def test_a_diverged_run_keeps_its_rows():
    with pytest.raises(UserError, match="training diverged") as raised:
        mmoe.fit(table(test=rows(50, 1)), "run", "learner.optimizer.lr=1e30", "data.batch_size=32", *QUICK)
    one_line(raised.value)
    stored: Any = OmegaConf.to_container(OmegaConf.load("run/config.yaml"), resolve=False)
    assert Path("run/schema.json").exists()
    assert {path.name for path in Path("run/data").iterdir()} == {"train.parquet", "test.parquet"}
    assert stored["data"]["train"].endswith("/data/train.parquet")
    assert Path("run/diverged.parquet").exists()


def test_options_may_hold_numpy_numbers():
    given = table(
        validation={"fraction": np.float32(0.25)}, test={"column": "amount", "value": np.array([0.5, 2.0])},
        columns={"group": {"kind": "categorical", "encoding": "hash", "buckets": np.int64(4)}},
        csv={"header": np.True_},
    )  # fmt: skip
    config = OmegaConf.create(given.config("run"))
    assert (config.validation, config.test.value) == ({"fraction": 0.25}, [0.5, 2.0])
    assert (config.columns.group.buckets, config.csv.header) == (4, True)


ARGUMENTS: list[tuple[str, Any]] = [
    *(("train", value) for value in (3, None, [], [1], "", {"fraction": 0.1}, rows(5)["y"], [rows(5)])),
    *(("test", value) for value in (5, [], [1], {}, {"fractoin": 0.1}, {"fraction": "a"}, [rows(5)])),
    *(("validation", value) for value in ([1], 0, False, {"last": 0.1, "by": 3}, {"column": 3, "value": 1})),
    *(("tasks", value) for value in (3, None, "y", [], {}, [3], [["y"]], {"y": 3}, {3: "y"}, {"y": None})),
    *(("tasks", value) for value in ({"y": mmoe.Binary}, {"y": ["y"]}, ["nothing"], {"y": rows(5)})),
    *(("columns", value) for value in (["amount"], 3, "amount", {3: "numeric"}, {"nothing": None})),
    *(("columns", value) for value in ({"amount": 3}, {"amount": "number"}, {"amount": {"size": 3}})),
    *(("main_task", value) for value in (3, ["y"], "nothing", "", rows(5))),
    *(("weight", value) for value in (3, ["amount"], "nothing", "", rows(5))),
    *(("group_by", value) for value in (3, ["group"], "nothing", "", rows(5))),
    *(("csv", value) for value in (3, [], "comma", ["delimiter"], {"delimeter": ","}, {"delimiter": 3})),
]


@pytest.mark.parametrize(("name", "value"), ARGUMENTS, ids=lambda value: re.sub(r"\W+", " ", str(value))[:30])
def test_a_wrong_argument_of_a_table_is_one_line_that_names_it(name: str, value: Any):
    with pytest.raises(UserError) as raised:
        mmoe.Table(**({"train": rows(), "tasks": ["y"]} | {name: value}))
    assert re.match(rf"{name}\b", one_line(raised.value))
    assert isinstance(raised.value, ArgumentError) or name == "csv"


@pytest.mark.parametrize("override", [3, None, ["seed=1"], {"seed": 1}, b"seed=1", rows(5)])
def test_an_override_that_is_not_text_is_one_line(override: Any):
    with pytest.raises(ArgumentError, match=r"^overrides=.*: must be text such as"):
        mmoe.fit(table(), "run", override)
    assert not Path("run").exists()


@pytest.mark.parametrize("folder", [None, 3, "", ["run"], rows(5)])
def test_a_folder_that_is_no_path_is_one_line(folder: Any):
    with pytest.raises(ArgumentError, match=r"^folder=.*: must be the path of a folder$"):
        mmoe.fit(table(), folder)


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_a_folder_that_is_a_file_is_one_line(folder: str):
    Path("file").write_text("mine")
    with pytest.raises(UserError) as raised:
        mmoe.fit(table(), folder)
    assert one_line(raised.value).startswith(f"folder={folder}: cannot be a folder (")
    assert files() == {"file": b"mine"}


def test_a_frame_in_place_of_a_table_is_one_line():
    with pytest.raises(ArgumentError, match=r"^table=.*: must be a mmoe\.Table$") as raised:
        mmoe.fit(rows(), "run")  # type: ignore[arg-type]
    one_line(raised.value)


OVERRIDES = {
    "model.num_exprts=4": "(+model.num_exprts=... would add it); did you mean num_experts?",
    "modle=ple": "did you mean model?",
    "model=pl": "there are adatt",
    "model=null": "must name a configuration of model",
    "data=3": "must name a configuration of data",
    "--experiment=census": "groups have no dashes",
    "seed": "seed",
    "a b": "a b",
    "~nothing": "nothing",
    "model.num_experts=[1": "[1",
    "model.num_experts=4,5": "model.num_experts=4,5",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found",
    "seed=???": "seed=...: must be given",
}


@pytest.mark.parametrize(("override", "message"), OVERRIDES.items())
def test_a_wrong_override_is_the_line_of_the_command_line(override: str, message: str, train: Any):
    with pytest.raises(UserError) as raised:
        mmoe.fit(table(), "run", override)
    assert message in " ".join(str(raised.value).split())
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()
    done = train("experiment=smoke", override)
    assert done.code == 2
    assert message in done.err


def test_a_bug_while_a_configuration_is_composed_looks_like_a_bug(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.cli.composition.compose", lambda *_, **__: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        mmoe.fit(table(), "run")
    assert not Path("run").exists()


def test_a_table_has_all_settings_of_the_data_module():
    config = table().config("run")
    assert config.keys() - {"_target_"} == {"train", "test", "tasks", *default_settings()}
    assert TableData.__init__.__kwdefaults__["num_bins"] == config["num_bins"]
    given = ("data.stream=true", "data.batch_size=64", "data.validation.fraction=0.2")
    run = mmoe.fit(table(), "run", *given, *QUICK)
    assert run.config.data.stream is True
    assert run.schema.num_rows["val"] == 48  # of the 240 rows that are not tested


NAMES = (
    "mine",
    "my_table",
    "Mine-2.new",
    "my table",
    "it's",
    "2024",
    "1e5",
    "null",
    "True",
    "NaN",
    "a,b",
    "x=y",
)
NAMES = (
    *NAMES,
    "[a]",
    "ä",
    'a "b"',
    "back\\slash",
    "a\\'b",
    "~a",
    "+a",
    "$a",
    "e5",
    "inf.x",
    "a:b",
    "(a)",
    "_1",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_drafted_command_names_the_file(name: str):
    words = shlex.split(str(train_command(Path("my conf", "data", f"{name}.yaml"))))
    assert words[:5] == ["python", "-m", "mmoe.train", "--config-dir", "my conf"]
    (parsed,) = OverridesParser.create().parse_overrides(words[5:])
    assert (parsed.key_or_group, parsed.value()) == ("data", name)
    assert not parsed.is_sweep_override()


def test_names_of_letters_and_digits_have_no_quotes():
    for name in ("mine", "my_table", "Mine-2.new", "runs/a-1/b"):
        assert quote_override("data", name) == f"data={name}"


def test_a_drafted_command_with_an_awkward_name_trains(train: Any, command: Any):
    rows().to_csv("rows.csv", index=False)
    out = Path("conf/data/it's 2, [my] table.yaml")
    assert command("describe")("rows.csv", "tasks=[y]", quote_override("out", str(out))).code == 0
    first = out.read_text().splitlines()[1]
    assert first == f"# {train_command(out)}"
    assert train(*shlex.split(first)[4:], *QUICK, "hydra.run.dir=run").code == 0


def test_tasks_may_have_names_with_any_characters(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    names = ["click/view", "50% off, [$5]", "a.b: c=d"]
    frame = rows().rename(columns={"y": names[0]})
    frame[names[1]], frame[names[2]] = 1 - frame[names[0]], frame["amount"].round(1)
    for seed in (0, 1):
        with_figures = (*QUICK[:2], f"seed={seed}")
        run = mmoe.fit(mmoe.Table(frame, {name: name for name in names}), f"sweep/{seed}", *with_figures)
    assert list(run.metrics["test"]) == names
    assert list(run.evaluate(resamples=10)["checkpoints"][0]["metrics"]) == names
    assert run.predict(frame).columns[0] == "click/view_probability"
    assert re.search(r"^\| `[^|]+` \| train \| `[0-9a-f]{16}` \|$", Path("sweep/1/card.md").read_text(), re.M)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    compare(Path("sweep"))
    assert "click/view" in capsys.readouterr().out
    assert "test/click/view/auroc" in pd.read_csv("sweep/compare.csv")


def test_a_table_guesses_how_a_file_is_written():
    frame = rows().assign(spend=rows(seed=1)["amount"])
    frame.to_csv("rows.csv", index=False, sep=";", decimal=",")
    found = mmoe.Table("rows.csv", ["y", "spend"])
    assert found.tasks["spend"]["kind"] == "regression"
    assert found.columns == {"amount": "numeric", "group": "categorical"}
    run = mmoe.fit(found, "run", *QUICK)
    assert (run.config.data.csv.delimiter, run.config.data.csv.decimal) == (";", ",")
    assert run.predict(frame.head(3)).notna().all(axis=None)


def test_a_printed_table_names_weights_groups_and_funnels():
    frame = rows().assign(weight=1.5, user=rows()["group"])
    frame["spend"] = frame["y"] * frame["amount"].abs()
    text = str(mmoe.Table(frame, ["y", "spend"], weight="weight", group_by="user"))
    assert re.search(r"^  weight +weight$", text, re.M)
    assert re.search(r"^  user +group_by$", text, re.M)
    assert "0 in all negative rows of y; `where: y` would leave these rows out" in text


def test_one_frame_may_be_given_twice():
    frame = rows()
    before = frame.copy()
    run = mmoe.fit(mmoe.Table(frame, ["y"], test=frame, validation=frame), "run", *QUICK)
    assert run.schema.num_rows == {"train": 300, "val": 300, "test": 300}
    assert frame.equals(before)


FRAMES: Mapping[str, pd.DataFrame] = {
    "must have at least one column; has none": pd.DataFrame(),
    "must have at least one column; has none ": pd.DataFrame(index=range(5)),
    "must have at least one row; has none": rows().head(0),
    "two columns are named 'y'; names must differ": pd.concat([rows(), rows()[["y"]]], axis=1),
    "two columns are named '0'; names must differ": rows().rename(columns={"amount": 0, "group": "0"}),
    "column names must be text or integers, one is 0.5": rows().rename(columns={"amount": 0.5}),
    "column names must be text or integers, one is nan": rows().rename(columns={"amount": np.nan}),
    "column names must be text or integers, one is ('a', 'amount')": pd.concat({"a": rows()}, axis=1),
}


@pytest.mark.parametrize("rule", FRAMES)
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_frame_that_is_no_table_is_one_line(name: str, rule: str):
    with pytest.raises(ArgumentError) as raised:
        mmoe.Table(**({"train": rows(), "tasks": ["y"]} | {name: FRAMES[rule]}))
    assert one_line(raised.value) == f"{name}: DataFrame: {rule.strip()}"


def test_integers_as_column_names_become_text():
    numbered = rows().set_axis(range(3), axis=1)
    given = mmoe.Table(numbered, {"y": "2"}, columns={"0": "numeric"}, group_by="1")
    assert given.columns == {"0": "numeric", "1": "categorical"}
    run = mmoe.fit(given, "run", *QUICK)
    assert run.predict(numbered)["y_probability"].between(0, 1).all()
    with pytest.raises(ArgumentError, match=r"^tasks=\[2\]: must .* names are text"):
        mmoe.Table(numbered, [2])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            mmoe.Multiclass("group", classes=("a", "b")),
            "left out; they are those of the training rows",
        ),
        (mmoe.Binary("y", group_by="group"), "must be left out; it is an argument of the Table"),
    ],
)
def test_what_a_task_cannot_set_is_refused(task: mmoe.Task, message: str):
    with pytest.raises(ArgumentError, match=message):
        mmoe.Table(rows(), {"t": task})


def test_a_column_that_a_split_names_is_an_input_only_if_it_is_given():
    split = {"fraction": 0.2, "by": "group"}
    assert "group" not in mmoe.Table(rows(), ["y"], test=split).columns
    given = mmoe.Table(rows(), ["y"], validation=split, columns={"group": "categorical"})
    assert given.columns["group"] == "categorical"


def test_a_table_without_inputs_is_one_line():
    with pytest.raises(UserError) as raised:
        mmoe.fit(mmoe.Table(rows()[["y"]], ["y"]), "run", *QUICK)
    assert one_line(raised.value) == "data.columns={}: must name at least one column"
    assert not Path("run").exists()


def test_evaluating_with_another_split_leaves_the_rows_of_trainings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MMOE_CACHE_DIR", str(tmp_path / "cache"))
    run = mmoe.fit(table(), "run", *QUICK)
    run.evaluate(data={"split_seed": 5}, resamples=0)
    other = mmoe.fit(table(), "other", "data.split_seed=5", *QUICK)
    assert other.schema.numeric != run.schema.numeric
    again = mmoe.fit(table(), "again", "data.split_seed=5", "data.cache_dir=empty", *QUICK)
    assert other.schema == again.schema


def test_a_column_that_decides_which_labels_are_known_is_no_input():
    spend = mmoe.Regression("amount", where="bought")
    given = mmoe.Table(rows().assign(bought=[0, 1, 1] * 100), {"spend": spend})
    assert [*given.columns] == ["group", "y"]
