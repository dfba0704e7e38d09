"""The command line as a user runs it."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import processes
import pytest
import torch
from conftest import Result, config, only_run, sample_lines
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.classification import BinaryAUROC

from mmoe import CONF_DIR, load
from mmoe.build import build
from mmoe.data.census_files import COLUMNS
from mmoe.data.schema import Schema
from mmoe.models.mmoe import MMoE
from mmoe.train import main as train_main
from mmoe.training import checkpoints
from mmoe.training.learner import Learner
from mmoe.training.task_metrics import TaskMetrics

Train = Callable[..., Result]
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
QUICK = ["trainer.max_epochs=1", "+trainer.limit_train_batches=3", "trainer.log_every_n_steps=1"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mmoe.train", *arguments]


def test_denormals_are_flushed_to_zero_only_in_training(train: Train, monkeypatch: pytest.MonkeyPatch):
    def tiny() -> bool:
        return bool((torch.full((3,), 1e-30) * 1e-10 == 0).all())

    seen = []
    monkeypatch.setattr(Learner, "on_train_epoch_start", lambda self: seen.append(tiny()))
    assert train("experiment=smoke", *QUICK, "figures=false").code == 0
    assert seen == [True]
    assert not tiny()


def test_the_smoke_experiment_ends_with_a_table_and_a_whole_run_folder():
    done = subprocess.run(command("experiment=smoke"), check=True, capture_output=True, text=True)
    folder = only_run()
    assert "bundled sample" in done.stdout
    assert f"run folder: {folder}" in done.stdout
    assert done.stderr == ""
    assert "Warning" not in done.stdout

    metrics = json.loads((folder / "metrics.json").read_text())
    schema = Schema.from_json((folder / "schema.json").read_text())
    assert metrics["row_origin"] == schema.row_origin == "sample"
    assert 1 <= metrics["epoch"] <= metrics["epochs"] <= 4
    assert metrics["samples_per_second"] > 0
    for task in ("income", "marital"):
        for name in ("auroc", "average_precision", "log_loss"):
            assert f"{metrics['test'][task][name]:.4f}" in done.stdout
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    }
    assert not any(path.name.startswith(".") for path in folder.rglob("*"))
    stored = OmegaConf.load(folder / "config.yaml")
    assert str(folder.absolute()) not in (folder / "config.yaml").read_text()
    assert OmegaConf.to_container(stored)["monitor"] == "val/income/auroc"

    # The best checkpoint was tested: its network gives the written predictions, which give the metrics.
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert len(frame) == 5000
    lines = sample_lines("census-income.test")
    labels = torch.tensor(frame[["income_label", "marital_label"]].to_numpy(), dtype=torch.float32)
    assert [line.endswith("50000+.") for line in np.array(lines)[frame["row"]]] == labels[
        :, 0
    ].bool().tolist()
    probabilities = torch.tensor(frame[["income_probability", "marital_probability"]].to_numpy())
    again = TaskMetrics(schema.tasks)("test", probabilities.double().logit(), labels)
    for key, value in again.items():
        _, task, name = key.split("/")
        assert metrics["test"][task][name] == pytest.approx(value.item(), abs=1e-9)
    network = load(folder).network()
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] + 1 == metrics["epoch"]
    state = network.state_dict()
    assert all(torch.equal(best["state_dict"][f"objective.network.{name}"], state[name]) for name in state)

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = events.Tags()["scalars"]
    expected = {f"{s}/{t}/auroc" for s in ("train", "val", "test") for t in ("income", "marital")}
    assert expected | {"train/loss"} <= set(scalars)
    curve = [event.value for event in events.Scalars("val/income/auroc")]
    assert len(curve) == metrics["epochs"]
    assert max(curve) == pytest.approx(metrics["val"]["income"]["auroc"], abs=1e-6)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_a_few_steps(train: Train, experiment: str):
    sample = ["data.source=sample"] if "source" in config(f"experiment={experiment}").data else []
    assert train(f"experiment={experiment}", *sample, *QUICK).code == 0
    folder = only_run()
    assert folder.parent.name == experiment
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept >= {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_an_experiment_sets_is_what_is_used(experiment: str):
    def leaves(node: object, key: str = "") -> list[tuple[str, object]]:
        if not isinstance(node, dict):
            return [(key, node)]
        return [leaf for name, child in node.items() for leaf in leaves(child, f"{key}.{name}".strip("."))]

    given = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"experiment/{experiment}.yaml"))
    used = config(f"experiment={experiment}")
    for key, value in leaves({name: part for name, part in given.items() if name != "defaults"}):
        *parents, name = key.split(".")
        parent = OmegaConf.select(used, ".".join(parents)) if parents else used
        assert OmegaConf.to_container(parent)[name] == value, key


def test_paddlerecs_settings_keep_every_epoch(train: Train):
    arguments = ["data.source=sample", "trainer.max_epochs=3", "+trainer.limit_train_batches=3"]
    assert train("experiment=census_paddlerec", *arguments).code == 0
    kept = {path.name for path in (only_run() / "checkpoints").iterdir()}
    always = {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert kept == {*always, "epoch_000.ckpt", "epoch_001.ckpt", "epoch_002.ckpt"}


@pytest.mark.slow
def test_a_run_can_be_repeated_from_its_folder(train: Train):
    assert train("experiment=smoke", *QUICK, "logger=none").code == 0
    folder = only_run().absolute()
    again = ["--config-path", str(folder), "--config-name", "config", "hydra.run.dir=again"]
    assert processes.run(train_main, *again).returncode == 0
    assert (folder / "predictions.parquet").read_bytes() == Path("again/predictions.parquet").read_bytes()
    before = (folder / "metrics.json").read_bytes()
    done = processes.run(train_main, *again[:4], f"hydra.run.dir={folder}")
    assert done.returncode == 2
    assert "must not hold a run already" in done.stderr
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed", "trainer.log_every_n_steps=0", "+trainer.accumulate_grad_batches=2"],
        ["trainer.precision=bf16-true"],
        ["inputs=embedding", "logger=csv", "trainer=cpu"],
        ["inputs=standard", "features=paddlerec", "logger=none"],
        [
            "model.expert_units=[12,6]",
            "model.gate_units=[4]",
            "model.tower_units=[]",
            "model.activation=silu",
        ],
        ["model.num_experts=1", "data.batch_size=1", "model.dropout=.1", "model.gate_dropout=.1"],
        ["data.tasks.marital=null", "model.gate_temperature=2", "callbacks.early_stopping=null"],
        ["data.main_task=marital", "objective.task_weights={income: .5}", "data.resident=false"],
        ["data.features=[age,sex]", "learner.optimizer._target_=torch.optim.AdamW"],
        ["callbacks.early_stopping.monitor=train/loss", "callbacks.early_stopping.mode=min"],
        ["+trainer.max_steps=2", "logger=none"],
    ],
)
def test_options(train: Train, overrides: list[str]):
    assert train("experiment=smoke", *QUICK, *overrides).code == 0
    assert (only_run() / "metrics.json").is_file()
    assert (only_run() / "csv/metrics.csv").is_file() == ("logger=csv" in overrides)


def test_the_same_seed_gives_the_same_bits(train: Train):
    for _ in range(2):
        assert train("experiment=smoke", "trainer.max_epochs=2", "model.dropout=.2", "logger=none").code == 0
    a, b = sorted(Path("runs/smoke").iterdir())
    assert (a / "predictions.parquet").read_bytes() == (b / "predictions.parquet").read_bytes()
    first, second = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (a, b))
    assert all(torch.equal(first["state_dict"][k], second["state_dict"][k]) for k in first["state_dict"])
    assert train("experiment=smoke", "trainer.max_epochs=2", "seed=1", "logger=none").code == 0
    c = max(Path("runs/smoke").iterdir())
    assert (a / "predictions.parquet").read_bytes() != (c / "predictions.parquet").read_bytes()


def test_early_stopping_and_the_best_epoch(train: Train):
    # A rate of 0 never improves on the first epoch.
    arguments = ["learner.optimizer.lr=0", "trainer.max_epochs=9", "callbacks.early_stopping.patience=2"]
    assert train("experiment=smoke", *arguments).code == 0
    metrics = json.loads((only_run() / "metrics.json").read_text())
    assert (metrics["epoch"], metrics["epochs"]) == (1, 3)


def test_without_data_the_fallback_is_loud(train: Train, own_cache: Path):
    done = train("data.url=http://127.0.0.1:9/none.zip", *QUICK)
    assert done.code == 0, done.err
    assert "FALLING BACK TO THE BUNDLED SAMPLE" in done.out
    assert "Best epoch (bundled sample)" in done.out
    assert json.loads((only_run() / "metrics.json").read_text())["row_origin"] == "sample"


def test_the_environment_variable_names_the_directory(
    train: Train, census_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MMOE_CENSUS_DIR", str(census_dir))
    result = train("experiment=census", *QUICK)
    assert result.code == 0
    assert "Best epoch (your own rows)" in result.out
    assert json.loads((only_run() / "metrics.json").read_text())["row_origin"] == "custom"


def test_help_and_config_do_not_wait_for_torch():
    script = "import sys, mmoe.train; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    done = subprocess.run(command("--cfg", "job"), check=True, capture_output=True, text=True)
    assert OmegaConf.create(done.stdout).model.num_experts == 8


def test_a_sweep_has_a_folder_for_each_run(train: Train):
    assert train("-m", "experiment=smoke", "model.num_experts=1,2", *QUICK).code == 0
    sweep = only_run()
    for number, experts in (("0", 1), ("1", 2)):
        assert OmegaConf.load(sweep / number / "config.yaml").model.num_experts == experts
        assert (sweep / number / "metrics.json").is_file()


def test_a_number_can_be_a_task(train: Train):
    features = "data.features=[sex,education,class_of_worker]"
    options = ["+data.tasks.age.column=age", "+data.tasks.age.kind=regression", features]
    assert train("experiment=smoke", *QUICK, *options, "objective.task_weights={age: 1e-4}").code == 0
    metrics = json.loads((only_run() / "metrics.json").read_text())
    frame = pd.read_parquet(only_run() / "predictions.parquet")
    ages = [int(line.split(",")[0]) for line in np.array(sample_lines("census-income.test"))[frame["row"]]]
    assert frame["age_label"].tolist() == ages
    error = (frame["age_label"] - frame["age_prediction"]).pow(2).mean()
    assert metrics["test"]["age"]["mse"] == pytest.approx(error, rel=1e-5)
    assert set(metrics["test"]) == {"income", "marital", "age"}


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_compiled_run_has_the_same_results(train: Train, replicas: int):
    found = []
    for compiled, folder in (("false", "plain"), ("true", "compiled")):
        options = [f"compile={compiled}", f"replicas={replicas}", f"hydra.run.dir={folder}", "logger=none"]
        steps = ["trainer.max_epochs=1", "+trainer.limit_train_batches=20"]
        assert train("experiment=smoke", *options, *steps).code == 0
        found.append(pd.read_parquet(f"{folder}/predictions.parquet"))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert load("compiled").network(replica=None if replicas == 1 else 0)


def break_lines(name: str, change: Callable[[list[str]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        lines = (folder / name).read_text("latin-1").splitlines()
        changed = change(lines)
        (folder / name).write_text("".join(f"{x}\n" for x in changed), "latin-1")

    return apply


def truncated_gzip(folder: Path) -> None:
    content = gzip.compress((folder / "census-income.data").read_bytes())
    (folder / "census-income.data.gz").write_bytes(content[: len(content) // 2])


def set_field(lines: list[str], column: str, value: str) -> list[str]:
    fields = lines[6].split(", ")
    fields[COLUMNS.index(column)] = value
    return [*lines[:6], ", ".join(fields), *lines[7:]]


TRAIN, TEST = "census-income.data", "census-income.test"
BAD_FILES = {
    "missing": (lambda d: (d / TRAIN).unlink(), "census-income.data: missing (with or without .gz)"),
    "one missing": (lambda d: (d / TEST).unlink(), "census-income.test: missing (with or without .gz)"),
    "empty": (lambda d: (d / TRAIN).write_text(""), "census-income.data: has no rows"),
    "truncated gzip": (truncated_gzip, "census-income.data.gz: damaged or incomplete gzip file"),
    "41 fields": (
        break_lines(TEST, lambda x: [*x[:6], x[6].rsplit(", ", 1)[0], *x[7:]]),
        "census-income.test, line 7: must have 42 comma-separated fields, has 41",
    ),
    "43 fields": (
        break_lines(TRAIN, lambda x: [*x[:6], x[6] + ", x", *x[7:]]),
        "census-income.data, line 7: must have 42 comma-separated fields, has 43",
    ),
    "age": (
        break_lines(TRAIN, lambda x: set_field(x, "age", "old")),
        "census-income.data, line 7, column 1 (age): must be a finite number, is 'old'",
    ),
    "income": (
        break_lines(TRAIN, lambda x: set_field(x, "income", "maybe")),
        "line 7, column 42 (income): must be one of ['- 50000.', '50000+.'], is 'maybe'",
    ),
    "one class": (
        break_lines(TRAIN, lambda x: [line for line in x if line.endswith("- 50000.")]),
        "monitor=val/income/auroc: needs different labels, but the training rows have",
    ),
    "header": (
        break_lines(TRAIN, lambda x: [", ".join(COLUMNS), *x]),
        "line 1, column 1 (age): must be a finite number, is 'age' (a header line?",
    ),
}
BAD_OVERRIDES = {
    "model.num_experts=0": "model.num_experts=0: must be an integer of at least 1",
    "objective.task_weights={marital: -1}": "objective.task_weights.marital=-1: must be a finite number",
    "objective.task_weights={foo: 1}": "objective.task_weights.foo: must be one of the tasks income, marital",
    "data.features=[age,shoe_size]": "data.features: 'shoe_size' is not a column; the columns are age, class",
    "data.features=[age,marital_status]": "data.features: 'marital_status' is the column that the label",
    "data.features=[income]": "data.features: 'income' is the column that the label of task income",
    "data.features=[]": "data.features=[]: must name at least one column",
    "data.source=web": "data.source=web: must be auto, official or sample",
    "data.main_task=foo": "data.main_task=foo: must be one of income, marital",
    "data.tasks.income.column=age": "data.tasks.income.column=age: must be a categorical column",
    "data.tasks=null": "data.tasks={}: must name at least one task",
    "data.batch_size=0": "data.batch_size=0: must be an integer of at least 1",
    "data.num_bins=1": "data.num_bins=1: must be an integer of at least 2",
    "data.split_seed=null": "data.split_seed=None: must be an integer of at least 0",
    "seed=-1": "seed=-1: must be an integer of at least 0",
    "seed=x": "seed=x: must be an integer of at least 0",
    "monitor=val/foo/auroc": "monitor=val/foo/auroc: must be one of val/income/auroc, val/income/average",
    "monitor_mode=min": "monitor_mode=min: must be max for val/income/auroc",
    "callbacks=null": "callbacks.best: is missing",
    "callbacks.best=null": "callbacks.best: is missing",
    "data.dir=/nowhere": "data.dir=/nowhere: must be a directory with census-income.data and",
    "model.activation=swish": "model.activation=swish: must be one of relu",
    "model.expert_units=16": "model.expert_units=16: must be a list of integers of at least 1",
    "model.dropout=abc": "model.dropout=abc: must be a number in [0, 1)",
    "+model.depth=3": "model: got an unexpected keyword argument 'depth'",
    "model._target_=mmoe.models.mmoe.Mmmoe": "model: Error locating target 'mmoe.models.mmoe.Mmmoe'",
    "inputs.numeric._target_=mmoe.No": "inputs.numeric: Error locating target 'mmoe.No'",
    "learner.optimizer.lr=-1": "learner.optimizer: Invalid learning rate: -1",
    "+learner.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true}": "learner.scheduler: ",
    "trainer.accelerator=tpu": "trainer: ",
    "trainer.accelerator=abacus": "trainer: You selected an invalid accelerator name",
    "trainer.max_epochs=abc": "trainer.max_epochs=abc: must be an integer of at least -1",
    "+trainer.limit_val_batches=1.5": "trainer: You have passed invalid value 1.5 for limit_val_batches",
    "objective.task_weights=[1,2]": "objective.task_weights=[1, 2]: must map",
    "objective.task_weights={income: 0, marital: 0}": "objective.task_weights",
    "data.tasks.income.positive=50000+.": "data.tasks.income.positive='50000+.': must be a list",
    "+data.tasks.income.negative=[a]": "data.tasks.income.negative: must be one of kind, column, where",
    "+data.num_workers=4": "data: got an unexpected keyword argument 'num_workers'",
    "data.features=age": "data.features=age: must be a list of columns",
    "data.features=5": "data.features=5: must be a list of text",
    "data.cache_dir=5": "data.cache_dir=5: must be text or null",
    "data.resident=maybe": "data.resident=maybe: must be true or false",
    "seed=4294967296": "seed=4294967296: must be at most 4294967295",
    "data.seed=99999999999999999": "data.seed=99999999999999999: must be at most 4294967295",
    "data.split_seed=99999999999999999": "data.split_seed=99999999999999999: must be at most 4294967295",
    "callbacks.best.monitor=val/marital/auc": "callbacks.best.monitor=val/marital/auc: must be one of",
    "callbacks.best.mode=min": "callbacks.best.mode=min: must be max for val/income/auroc",
    "callbacks.early_stopping.monitor=income": "callbacks.early_stopping.monitor=income: must be one of val/",
    "callbacks.early_stopping.monitor=train/income/auroc": "callbacks.early_stopping.check_on_train_epoch",
    "+callbacks.best.save_top_k=0": "callbacks.best.save_top_k=0: must keep a checkpoint",
    "+callbacks.best.keep=2": "callbacks.best: got an unexpected keyword argument 'keep'",
    "+callbacks.mine={_target_: mmoe.No}": "callbacks.mine: Error locating target 'mmoe.No'",
    "+callbacks.mine={patience: 3}": "callbacks.mine={'patience': 3}: must have a _target_",
    "+callbacks.lr={_target_: pytorch_lightning.callbacks.LearningRateMonitor}": "trainer: Cannot",
    "+callbacks.mine=mypackage.Mine": "callbacks.mine=mypackage.Mine: must have a _target_",
    "model._target_=mmoe.models.mmoe": "model._target_=mmoe.models.mmoe: must be a class or a function",
    "inputs.categorical=onehot": "inputs.categorical=onehot: must be a class to build",
    "trainer.max_epochs=2.5": "trainer.max_epochs=2.5: must be an integer of at least -1",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0: must be above 0",
    "+trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0: must be",
    "+trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0: must be",
    "+trainer.plugins=[]": "trainer.plugins: is set by mmoe; leave it out",
    "+inputs.numeric.size=3": "inputs.numeric: got an unexpected keyword argument 'size'",
}


def nothing_left() -> bool:
    written = [p for p in Path().rglob("*") if p.is_file() and "census/" not in str(p)]
    return not written and not Path("runs/census").exists()


def refused(result: Result, message: str) -> None:
    assert result.code == 2, result.err
    assert message in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert nothing_left()


@pytest.mark.parametrize("mistake", BAD_FILES)
def test_bad_files_are_refused_in_one_line(train: Train, census_dir: Path, mistake: str):
    make, message = BAD_FILES[mistake]
    make(census_dir)
    refused(train(f"data.dir={census_dir}"), message)


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_options_are_refused_in_one_line(train: Train, census_dir: Path, override: str):
    result = train(f"data.dir={census_dir}", *QUICK[1:], "logger=none", override)
    refused(result, BAD_OVERRIDES[override])


LIMITS = {
    "half of the validation rows": (["+trainer.limit_val_batches=0.5"], {"val": 2400, "test": 5000}),
    "some of both": (
        ["+trainer.limit_val_batches=1", "+trainer.limit_test_batches=2"],
        {"val": 400, "test": 800},
    ),
    "no validation": (["+trainer.limit_val_batches=0"], {"test": 5000}),
    "no test": (["+trainer.limit_test_batches=0"], {"val": 5000}),
    "neither": (["+trainer.limit_val_batches=0", "+trainer.limit_test_batches=0"], {}),
    "no validation in time": (["+trainer.check_val_every_n_epoch=5"], {"val": 5000, "test": 5000}),
    "one batch of each": (["+trainer.fast_dev_run=true"], {"val": 400, "test": 400}),
}


def test_a_checkpoint_may_follow_a_training_metric(train: Train):
    best = "_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: train/income/auroc, mode: max"
    extra = f"+callbacks.extra={{{best}, dirpath: kept}}"
    assert train(*QUICK, extra, "trainer.max_epochs=1", "logger=none").code == 0
    assert len(list(Path("kept").iterdir())) == 1
    wrong = train(*QUICK, extra, "+trainer.val_check_interval=0.5")
    assert wrong.code == 2
    assert wrong.err.startswith("error: callbacks.extra.save_on_train_epoch_end: must be true")


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", LIMITS)
def test_limits_are_printed_and_scored_rows_are_counted(train: Train, limit: str, replicas: int):
    overrides, rows = LIMITS[limit]
    options = [*QUICK, "data.eval_batch_size=400", f"replicas={replicas}", "logger=none", "figures=true"]
    result = train("experiment=smoke", *options, *overrides)
    assert result.code == 0, result.err
    folder = only_run()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_rows"] == rows
    for split in ("val", "test"):
        assert (split in metrics) == (split in rows)
        partly = f"{rows.get(split, 0):,} of 5,000 {split}"
        assert (partly in result.out) == (0 < rows.get(split, 0) < 5000)
    no_validation = limit.startswith("no validation") or limit == "neither"
    no_validation |= limit == "one batch of each" and replicas == 1  # Lightning keeps no checkpoints then
    assert ("the last, because no validation chose one" in result.out) == no_validation
    assert metrics["monitor"] == (None if no_validation else "val/income/auroc")
    assert metrics["epoch"] == 1
    if "test" in rows:
        frame = pd.read_parquet(folder / "predictions.parquet")
        assert len(frame) == rows["test"]
        end = "" if replicas == 1 else "_0"
        area = BinaryAUROC()(
            torch.tensor(frame[f"income_probability{end}"].to_numpy()),
            torch.tensor(frame["income_label"].to_numpy()),
        )
        found = metrics["test"] if replicas == 1 else metrics["runs"][0]["test"]
        assert found["income"]["auroc"] == pytest.approx(area.item(), abs=1e-6)
    assert not list(folder.rglob(".*"))
    assert result.err == ""


@pytest.mark.slow
def test_the_best_of_several_checkpoints_is_tested(train: Train):
    """The best checkpoint is tested, not the last one, whatever the names of the files are."""
    options = ["experiment=smoke", "logger=none", "learner.optimizer.lr=0.05", "trainer.max_epochs=6"]
    options += ["callbacks.early_stopping=null"]
    epochs = set()
    for name, more in {
        "one": [],
        "three": ["+callbacks.best.save_top_k=3"],
        "all": ["+callbacks.best.save_top_k=-1"],
        "named": ["callbacks.best.filename='{epoch}-{val/income/auroc:.3f}'"],
        "elsewhere": ["callbacks.best.dirpath=elsewhere", "+callbacks.best.save_last=true"],
    }.items():
        assert train(*options, *more, f"hydra.run.dir={name}").code == 0
        metrics = json.loads(Path(name, "metrics.json").read_text())
        history = pd.read_csv(Path(name, "history.csv"))
        areas = history["val/income/auroc"]
        assert metrics["epoch"] == areas.idxmax() + 1
        assert metrics["val"]["income"]["auroc"] == pytest.approx(areas.max(), abs=1e-9)
        stored = checkpoints.load(Path(name, "checkpoints/best.ckpt"))
        assert stored["epoch"] + 1 == metrics["epoch"]
        epochs.add((metrics["epoch"], metrics["epochs"]))
    ((best, last),) = epochs
    assert best < last  # otherwise this test would prove nothing
    assert len(list(Path("three/checkpoints").glob("best-*.ckpt"))) == 3
    assert len(list(Path("all/checkpoints").glob("best-*.ckpt"))) == 6


@pytest.mark.parametrize("returned", ["logits", "(logits, None)", "(logits[:, :1], gates)"])
def test_a_model_must_return_logits_and_gates(train: Train, monkeypatch: pytest.MonkeyPatch, returned: str):
    code = (
        "from mmoe import MMoE\nclass Net(MMoE):\n    def forward(self, x):\n"
        f"        logits, gates = super().forward(x)\n        return {returned}\n"
    )
    Path("own_net.py").write_text(code)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    sys.modules.pop("own_net", None)
    result = train("experiment=smoke", *QUICK, "model._target_=own_net.Net")
    assert result.code == 2
    expected = "error: model=Net: must return logits [B, 2] and gates [B, 2, E], as mmoe.Output;"
    assert result.err.startswith(expected)
    assert not list(Path().glob("runs/*"))


def test_several_loggers(train: Train):
    result = train("experiment=smoke", *QUICK, "logger=[csv,tensorboard]", "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert Path("run/csv/metrics.csv").exists()
    assert "val/income/auroc" in EventAccumulator("run").Reload().Tags()["scalars"]
    one = "{a: {_target_: pytorch_lightning.loggers.CSVLogger, save_dir: a}}"
    assert train("experiment=smoke", *QUICK, "logger=none", f"+logger={one}", "hydra.run.dir=b").code == 0
    assert list(Path("a").rglob("metrics.csv"))


@pytest.mark.slow
def test_weights_and_biases_and_mlflow(train: Train, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = train("experiment=smoke", *QUICK, "logger=[wandb,mlflow]", "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert list(Path("run/wandb").rglob("*.wandb"))
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mmoe").experiment_id])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert run.data.metrics["test/income/auroc"] == pytest.approx(
        metrics["test"]["income"]["auroc"], abs=1e-6
    )


def test_files_follow_the_umask():
    done = processes.run(train_main, "experiment=smoke", *QUICK, before=partial(os.umask, 0o077))
    assert done.returncode == 0
    for path in only_run().rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_data_directory_that_begins_as_the_run_folder_does(train: Train, census_dir: Path):
    """If the run folder is moved, only paths inside it change."""
    shutil.copytree(census_dir, "run-data")
    options = [
        "experiment=smoke",
        "data.source=auto",
        f"data.dir={Path('run-data').absolute()}",
        "logger=none",
    ]
    assert train(*options, *QUICK[1:], "trainer.max_epochs=1", "hydra.run.dir=run").code == 0
    stored = OmegaConf.to_container(OmegaConf.load("run/config.yaml"), resolve=False)
    assert stored["data"]["dir"] == str(Path("run-data").absolute())
    assert stored["callbacks"]["best"]["dirpath"] == "${hydra:runtime.output_dir}/checkpoints"
    shutil.move("run", "moved")
    config = load("moved").config
    assert config.callbacks.best.dirpath == str(Path("moved/checkpoints").absolute())
    assert config.data.dir == str(Path("run-data").absolute())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_hardware_that_is_not_there(train: Train, trainer: str):
    refused(train("experiment=smoke", f"trainer={trainer}"), "trainer: ")


def test_the_exit_code_of_the_process_is_2(census_dir: Path):
    done = subprocess.run(
        command(f"data.dir={census_dir}", "model.num_experts=0"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: model.num_experts=0: must be an integer of at least 1\n"


def test_the_label_of_the_second_group_is_no_input(train: Train):
    result = train("experiment=census_education", "features=paddlerec")
    refused(result, "data.features: 'education' is the column that the label of task education is made from")


def test_without_arguments_the_experiment_is_named(
    command: Callable[[str], Callable[..., Result]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MMOE_CENSUS_DIR", "missing")  # so that no training starts
    done = command("train")()
    assert (done.code, done.out.count("\n")) == (2, 1)
    assert done.out.startswith("no arguments: experiment=census;")


def test_only_census_data_has_features(train: Train):
    refused(train("experiment=synthetic", "features=all"), "Could not override 'features'. No match in ")
    assert train("experiment=synthetic", "--cfg", "job").out.count("features") == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=mmmoe", "In 'train': Could not find 'model/mmmoe'; there are adatt, aitm, "),
        ("modle=mmoe", "modle: no such setting (+modle=... would add it); did you mean model?"),
        (
            "model.num_expert=3",
            "model.num_expert: no such setting (+model.num_expert=... would add it); did ",
        ),
        ("trainer.foo=1", "trainer.foo: no such setting (+trainer.foo=... would add it)"),
        ("model.num_experts=[1", "model.num_experts=[1: cannot be read as key=value; text with "),
        ("data.columns={" + "a: b, " * 99, "data.columns={a: b, a: b"),  # longer than the name of a file
        ("++", "++: cannot be read as key=value; text with special characters needs quotes"),
        ("csv.delimiter=,", "csv.delimiter=,: cannot be read as key=value; text with special characters"),
        ("experiment=[smoke,nothing]", "In 'train': Could not load 'experiment/nothing'."),
        ("model.expert_units={a: 1}", "model.expert_units: must be a list, such as [a,b]"),
        ("callbacks=[a]", "callbacks: must be a mapping, such as {key: value}"),
        ("~modle", "Could not delete from config. 'modle' does not exist."),
        ("--config-dir=nowhere", "Additional config directory '"),
        ("--experiment", "--experiment: groups have no dashes; write experiment=..."),
    ],
)
@pytest.mark.parametrize("is_sweep", [False, True])
def test_a_wrong_override_is_one_line(train: Train, override: str, message: str, is_sweep: bool):
    result = train(*["-m"][: int(is_sweep)], override)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"error: {message}")
    assert not list(Path().rglob("config.yaml"))


def test_a_run_folder_without_a_key_gets_a_hint(train: Train, smoke_run: Path):
    refused(train(str(smoke_run)), f"; did you mean run={smoke_run} or resume={smoke_run}?")


def test_a_wrong_override_keeps_its_traceback_if_asked_for(train: Train, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigCompositionException, match="Could not override 'modle'"):
        train("modle=mmoe")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_corrupt_cache_is_rebuilt_with_a_warning(train: Train, census_dir: Path, own_cache: Path):
    assert train(f"data.dir={census_dir}", *QUICK).code == 0
    (path,) = own_cache.glob("*.npz")
    path.write_bytes(path.read_bytes()[:2000])
    result = train(f"data.dir={census_dir}", *QUICK)
    assert result.code == 0
    assert "the cached rows are corrupt" in result.out


@pytest.mark.slow
def test_real_rows_reach_the_stated_aurocs(real_dir: Path, train: Train):
    for features, least in (("paper", 0.9495), ("paddlerec", 0.9520)):
        arguments = [f"data.dir={real_dir}", f"features={features}", "logger=none"]
        assert train("experiment=census", *arguments, f"hydra.run.dir={features}").code == 0
        test = json.loads(Path(features, "metrics.json").read_text())["test"]
        assert test["income"]["auroc"] >= least
        assert test["marital"]["auroc"] >= 0.9940


@pytest.mark.slow
def test_peak_memory_on_real_rows(real_dir: Path):
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    arguments = command(f"data.dir={real_dir}", "trainer.max_epochs=2")
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) * 1024 < 900e6


def test_no_epochs_at_all_is_a_run(train: Train):
    result = train("experiment=smoke", "trainer.max_epochs=0")
    assert result.code == 0
    assert "- samples/s" in result.out


@pytest.mark.parametrize(("replicas", "of"), [(1, ""), (2, " of replica 0")])
def test_divergence_is_said_in_one_line(train: Train, replicas: int, of: str):
    result = train("experiment=smoke", "learner.optimizer.lr=1e30", f"replicas={replicas}")
    assert result.code == 2
    path = only_run() / "diverged.parquet"
    assert result.err == (
        f"error: training{of} diverged in step 2 (epoch 1, batch 2): the logits of income, marital are"
        " not finite; lower the learning rate (learner.optimizer.lr);"
        f" the batch's rows are in {path}\n"
    )
    # The rows are those of the first two batches, as they are in the file.
    loaded = build(config("experiment=smoke", f"data.cache_dir={Path.cwd()}"), "data")
    frame = pd.read_parquet(path)
    for number, batch in zip((1, 2), loaded.train_dataloader(), strict=False):
        rows = frame[frame["batch"] == number]
        assert rows["income_label"].tolist() == batch.labels[:, 0].tolist()
        assert rows["age"].tolist() == batch.numbers[:, 0].tolist()
        vocabulary = loaded.schema.categorical[0]
        assert rows[vocabulary.name].tolist() == [vocabulary.levels[code] for code in batch.levels[:, 0]]


def test_weights_that_are_not_finite_are_never_kept(train: Train):
    result = train("experiment=smoke", "learner.optimizer.lr=1e30", "callbacks.last.every_n_steps=3")
    assert result.code == 2
    assert "training diverged in step 2 (epoch 1, batch 2)" in result.err
    assert not list((only_run() / "checkpoints").glob("*"))


def test_a_bug_keeps_its_traceback(train: Train, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.training.run_folder.start", lambda *_: int("bug"))
    result = train("experiment=smoke")
    assert result.code == 1
    assert "Traceback" in result.err


def test_killed_in_training_leaves_no_half_files():
    options = ["experiment=smoke", "trainer.max_epochs=50"]
    process = processes.start(train_main, *options, out=Path("out"), err=Path("err"))
    deadline = time.time() + 60
    while not list(Path("runs").glob("*/*/checkpoints/[!.]*.ckpt")) and time.time() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    folder = only_run()
    assert list((folder / "checkpoints").glob("[!.]*.ckpt"))
    Schema.from_json((folder / "schema.json").read_text())
    assert OmegaConf.load(folder / "config.yaml").seed == 0
    assert not (folder / "metrics.json").exists()
    for path in (folder / "checkpoints").glob("[!.]*.ckpt"):
        torch.load(path, weights_only=True)


def test_a_replica_with_rows_of_its_own_that_diverges(train: Train):
    small = ["data.rows=1280", "data.eval_rows=64", "logger=none", "callbacks.last.every_n_steps=3"]
    result = train("experiment=synthetic", *small, "replicas=2", "learner.optimizer.lr=1e30")
    assert result.code == 2
    where = "training of replica 0 diverged in step 2 (epoch 1, batch 2)"
    assert f"error: {where}: the logits of task1, task2 are not finite" in result.err
    frame = pd.read_parquet(only_run() / "diverged.parquet")
    data = build(config("experiment=synthetic", *small, "replicas=2"), "data")
    first = next(iter(data.train_dataloader()))
    assert frame[frame["batch"] == 1]["x1"].tolist() == first.numbers[0, :, 0].tolist()


@pytest.mark.parametrize(("replicas", "where"), [(1, ""), (2, " in replica 0")])
def test_a_task_that_died_is_warned_of_once(
    train: Train, monkeypatch: pytest.MonkeyPatch, replicas: int, where: str
):
    """Every unit of income's tower is 0 from the start, so no gradient reaches it."""
    create = MMoE.__init__

    def dead(self: MMoE, *args: object, **options: object) -> None:
        create(self, *args, **options)
        with torch.no_grad():
            self.towers[0].weight[0] = 0
            self.towers[0].bias[0] = -1

    monkeypatch.setattr(MMoE, "__init__", dead)
    result = train("experiment=smoke", "activation=relu", "trainer.max_epochs=2", f"replicas={replicas}")
    assert result.code == 0, result.err
    said = f"the predictions of income{where} are the same for all validation rows"
    assert (result.out + result.err).count(said) == 1
    assert "try model.activation=gelu or a lower learner.optimizer.lr" in result.out


def test_half_precision_throughout(train: Train):
    small = ["data.rows=256", "data.eval_rows=64", "logger=none", "trainer.max_epochs=1"]
    assert train("experiment=synthetic", *small, "trainer.precision=bf16-true").code == 0
