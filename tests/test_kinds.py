"""Every method trains tasks of all kinds, with unknown labels and weights, and every command serves them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import models

from mmoe import Binary, Count, DataModule, Dataset, Multiclass, Regression, Task, analysis, load
from mmoe.data.encode import encode
from mmoe.data.fit_schema import fit_schema

MODELS = models("aitm", "esmm")
TRUST = "trust=[test_kinds]"
DATA = ["~data", "+data={_target_: test_kinds.AllKinds, batch_size: 64}", "logger=none", "figures=false"]
QUICK = [*DATA, "trainer.max_epochs=2", "learner.optimizer.lr=0.01", "objective.task_weights=null"]


def frame(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    age, group = random.uniform(20, 80, count), random.choice(["a", "b", "c"], count)
    score = (age - 50) / 15 + (group == "a")
    clicked = score + random.logistic(size=count) > 0
    genre = np.where(score > 1, "old", np.where(score > -0.5, "middle", "young")).astype(object)
    genre[random.random(count) < 0.2] = None
    return pd.DataFrame(
        {
            "age": age,
            "group": group,
            "clicked": clicked.astype(int),
            "spend": np.where(clicked, 500 + 80 * score + random.normal(0, 20, count), np.nan),
            "genre": genre,
            "visits": random.poisson(np.exp(score / 2)),
            "exposure": random.uniform(0.1, 1, count),
        }
    )


TASKS: list[Task] = [
    Regression("spend", name="spend", where="clicked"),
    Binary("clicked", name="click", class_weights="balanced"),
    Multiclass("genre", name="genre"),
    Count("visits", name="visits", weight="exposure"),
]


class AllKinds(DataModule):
    """Rows of four tasks, in memory. The main task is a regression whose label is known in half of them."""

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        seed: int = 0,
        one_class: bool = False,
        count_task: bool = True,
    ) -> None:
        super().__init__(self.make, batch_size, eval_batch_size, seed=seed)
        self.one_class = one_class
        self.tasks = TASKS if count_task else TASKS[:-1]

    def make(self) -> Dataset:
        frames = {"train": frame(400, 0), "val": frame(200, 1), "test": frame(150, 2)}
        if self.one_class:
            frames["test"]["clicked"] = 0  # no label of spend is known either
        schema = fit_schema(frames["train"], ["age", "group"], self.tasks, 8)
        counts = {name: len(rows) for name, rows in frames.items()}
        splits = {name: encode(rows, schema) for name, rows in frames.items()}
        positions = {name: torch.arange(count) for name, count in counts.items()}
        return Dataset(
            type(schema)(schema.categorical, schema.numeric, schema.tasks, num_rows=counts), splits, positions
        )


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_every_method_learns_all_kinds(train: Callable, model: str, replicas: int):
    size = ["model.size=2"] if model == "ensemble" else []
    done = train(*QUICK, f"model={model}", *size, f"replicas={replicas}", "hydra.run.dir=run")
    assert done.code == 0, done.err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["monitor"] == "val/spend/mse"
    stored = load("run").config
    assert (stored.monitor, stored.monitor_mode) == ("val/spend/mse", "min")
    assert {task: list(values) for task, values in metrics["test"].items()} == {
        task.name: list(task.METRICS) for task in TASKS
    }
    values = [v for task in metrics["test"].values() for v in task.values()]
    assert np.isfinite(values).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with enough epochs to learn something."""
    import sys
    from unittest import mock

    from mmoe.train import main

    folder = tmp_path_factory.mktemp("kinds") / "run"
    longer = ["trainer.max_epochs=12", "figures=true", f"hydra.run.dir={folder}"]
    with mock.patch.object(sys, "argv", ["train", *QUICK, *longer]):
        main()
    return folder


def test_the_tasks_are_learned(trained: Path):
    test = json.loads((trained / "metrics.json").read_text())["test"]
    assert test["click"]["auroc"] > 0.75
    assert test["spend"]["r2"] > 0.5
    assert test["genre"]["auroc"] > 0.85
    assert test["visits"]["poisson_deviance"] < 1.5
    assert (trained / "figures/roc.png").exists()


def test_predictions_have_labels_where_they_are_known(trained: Path):
    run, raw = load(trained, ["test_kinds"]), frame(150, 2)
    found = run.predictions
    assert list(found) == [
        "row", "spend_label", "spend_prediction", "click_label", "click_probability", "genre_label",
        "genre_class", "genre_probability_middle", "genre_probability_old", "genre_probability_young",
        "visits_label", "visits_prediction",
    ]  # fmt: skip
    np.testing.assert_allclose(found["spend_label"], raw["spend"], rtol=1e-6)
    assert found["genre_label"].isna().tolist() == raw["genre"].isna().tolist()
    assert found["genre_label"].dropna().tolist() == raw["genre"].dropna().tolist()
    assert found["click_label"].tolist() == raw["clicked"].tolist()
    probabilities = found[[f"genre_probability_{name}" for name in ("middle", "old", "young")]]
    assert probabilities.sum(axis=1).tolist() == pytest.approx([1] * 150)
    error = (found["spend_label"] - found["spend_prediction"]).pow(2).mean()
    assert run.metrics["test"]["spend"]["mse"] == pytest.approx(error, rel=1e-5)
    known = found["genre_label"].notna()
    accuracy = (found["genre_label"] == found["genre_class"])[known].mean()
    assert run.metrics["test"]["genre"]["accuracy"] == pytest.approx(accuracy)
    new = run.predict(raw[["group", "age"]].set_index(np.arange(7, 157)))
    assert list(new) == [name for name in found if name != "row" and not name.endswith("_label")]
    assert new.index[0] == 7
    np.testing.assert_allclose(new["visits_prediction"], found["visits_prediction"], rtol=1e-4)
    scored = run.scored()
    assert scored["genre_label"].dropna().tolist() == raw["genre"].dropna().tolist()
    assert {"age", "group", "genre_gate_0"} <= set(scored)


def test_every_command_serves_all_kinds(trained: Path, command: Callable):
    done = command("evaluate")(f"run={trained}", TRUST, "resamples=50", "out=found.json")
    assert done.code == 0, done.err
    (found,) = json.loads(Path("found.json").read_text())["checkpoints"]
    expected = json.loads((trained / "metrics.json").read_text())["test"]
    for task, values in expected.items():
        assert found["metrics"][task] == pytest.approx(values, rel=1e-5)
        for name, (low, high) in found["intervals"][task].items():
            assert low <= high, name
    frame(20, 5)[["group", "age"]].to_parquet("new.parquet")
    done = command("predict")(f"run={trained}", "input=new.parquet", "output=scores.csv")
    assert done.code == 0, done.err
    assert pd.read_csv("scores.csv")["genre_class"].isin(["middle", "old", "young"]).all()
    for form in ("onnx", "torch_export"):
        name = "network.onnx" if form == "onnx" else "network.pt2"
        done = command("export")(f"run={trained}", f"format={form}", f"out={name}")
        assert done.code == 0, done.err
    run = load(trained, ["test_kinds"])
    assert set(analysis.roc(run)) == set(analysis.calibration(run)) == {"click"}
    assert analysis.expert_ablation(run).notna().all(axis=None)
    assert analysis.plot_training_curves(run)


def test_metrics_that_cannot_be_computed_are_shown_as_na(train: Callable, command: Callable):
    one_class = "data.one_class=true"
    done = train(*QUICK, "+" + one_class, "hydra.run.dir=run", "figures=true", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert "task spend: the test rows have no known label, so they have no mse, rmse, mae, r2" in done.out
    assert "task click: the test rows have 150 known labels, all equal, so they have no auroc" in done.out
    assert "n/a" in done.out
    assert not Path("run/figures/roc.png").exists()
    assert command("evaluate")("run=run", TRUST, "resamples=20").code == 0
    watched = ["monitor=val/click/auroc", "hydra.run.dir=other"]
    assert train(*QUICK, "+" + one_class, *watched, "trainer.max_epochs=1").code == 0


def test_an_extracted_replica_has_the_columns_of_a_run(train: Callable, command: Callable):
    done = train(*QUICK, "replicas=2", "hydra.run.dir=run", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    done = command("extract")("run=run", "replica=1", "out=one")
    assert done.code == 0, done.err
    both, one = load("run").predictions, load("one").predictions
    assert "genre_class_1" in both
    assert one["genre_class"].tolist() == both["genre_class_1"].tolist()
    assert one["spend_label"].equals(both["spend_label"])


def test_the_monitored_metric_must_be_computable(monkeypatch: pytest.MonkeyPatch, train: Callable):
    def without_known(self: AllKinds) -> Dataset:
        made = make(self)
        val = made.splits["val"]
        known = torch.zeros_like(val.known)
        known[:, 1:] = True
        splits = {**made.splits, "val": val._replace(known=known)}
        return Dataset(made.schema, splits, made.positions)

    make = AllKinds.make
    monkeypatch.setattr(AllKinds, "make", without_known)
    done = train(*QUICK)
    assert done.code == 2
    assert done.err.startswith(
        "error: monitor=val/spend/mse: needs different labels, but the validation rows"
    )
    assert done.err.count("\n") == 1
    assert not list(Path("runs").glob("*/*"))
