"""Regressions are trained on standardised labels, and predict in the unit of their labels."""

import numpy as np
import pandas as pd
import pytest
import torch

from mmoe import MMoE, Network, Objective
from mmoe.data.batch import Batch, take
from mmoe.data.encode import encode
from mmoe.data.fit_schema import fit_schema
from mmoe.models.exported import ExportedNetwork
from mmoe.models.inputs import Inputs
from mmoe.tasks import Binary, Regression, Task
from mmoe.training.task_metrics import TaskMetrics


def frame(count: int = 4000) -> pd.DataFrame:
    """Rows whose class and numbers follow from their age and kind, with noise."""
    random = np.random.default_rng(0)
    age, kind = random.uniform(20, 80, count), random.choice(["a", "b", "c"], count)
    score = (age - 50) / 15 + (kind == "a")
    return pd.DataFrame(
        {
            "age": age,
            "kind": pd.Categorical(kind),
            "rich": pd.Categorical(np.where(score + random.logistic(size=count) > 0, "yes", "no")),
            "salary": 50_000 + 8_000 * score + random.normal(0, 2_000, count),
            "far": 1e5 + np.where(score > 0, 1.0, -1.0),
        }
    )


CLASS = Binary("rich", ("yes",), name="rich")
SALARY, FAR = (Regression(name, name=name) for name in ("salary", "far"))


def trained(tasks: tuple[Task, ...], steps: int = 400) -> tuple[Network, Batch, tuple[Task, ...]]:
    rows = frame()
    schema = fit_schema(rows, ["age", "kind"], tasks, 16)
    encoded = encode(rows, schema)
    torch.manual_seed(0)
    inputs = Inputs(schema)
    network = Network(inputs, MMoE(inputs.num_outputs, len(tasks)))
    objective = Objective(network, schema.tasks)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    for _ in range(steps):
        batch = take(encoded, torch.randint(3000, (128,)))
        optimizer.zero_grad()
        objective(*batch).loss.backward()
        optimizer.step()
    return network.eval(), take(encoded, torch.arange(3000, 4000)), schema.tasks


@torch.no_grad()
def metrics(network: Network, rows: Batch, tasks: tuple[Task, ...]) -> dict[str, float]:
    found = TaskMetrics(tasks)("test", network(rows.levels, rows.numbers).logits, rows.labels)
    return {name.removeprefix("test/"): value.item() for name, value in found.items()}


def test_large_numbers_do_not_ruin_the_task_beside_them():
    alone = metrics(*trained((CLASS,)))
    both = metrics(*trained((CLASS, SALARY, FAR)))
    assert alone["rich/auroc"] > 0.75
    assert both["rich/auroc"] == pytest.approx(alone["rich/auroc"], abs=0.02)
    assert both["salary/r2"] > 0.85
    assert 0.7 < both["far/r2"] <= 1
    assert both["salary/mse"] == pytest.approx(2_000**2, rel=0.5)


def test_predictions_are_in_the_unit_of_the_labels():
    network, rows, tasks = trained((CLASS, SALARY), steps=50)
    with torch.no_grad():
        logits = network(rows.levels, rows.numbers).logits
        served, _ = ExportedNetwork(network, type("Some", (), {"tasks": tasks})())(rows.levels, rows.numbers)
    numbers = tasks[1].predict(logits[:, 1:])[:, 0]
    assert numbers.mean().item() == pytest.approx(50_000, rel=0.2)
    torch.testing.assert_close(served[:, 1].double(), numbers, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(served[:, 0], logits[:, 0].sigmoid())
    assert numbers.dtype == torch.float64


def test_predictions_and_metrics_of_a_run_are_in_the_unit_of_the_labels(train):
    options = ["+data.tasks.age.column=age", "+data.tasks.age.kind=regression", "trainer.max_epochs=3"]
    features = "data.features=[sex,education,class_of_worker,marital_status,weeks_worked]"
    assert (
        train("experiment=smoke", "data.tasks.marital=null", *options, features, "hydra.run.dir=run").code
        == 0
    )
    found = pd.read_json("run/metrics.json", typ="series")["test"]
    frame = pd.read_parquet("run/predictions.parquet")
    assert frame["age_prediction"].mean() == pytest.approx(frame["age_label"].mean(), rel=0.1)
    error = (frame["age_label"] - frame["age_prediction"]).pow(2).mean()
    assert found["age"]["mse"] == pytest.approx(error, rel=1e-5)
    assert found["age"]["r2"] > 0.3
