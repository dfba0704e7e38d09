"""`python -m mmoe.export`: files that other programs run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import config, models

from mmoe import load
from mmoe.build import build
from mmoe.data.columns import Categorical
from mmoe.data.schema import Schema
from mmoe.export import export as write_export
from mmoe.models.exported import random_inputs

MODELS = models("esmm")


@pytest.fixture
def export(command):
    return command("export")


def test_onnx_has_the_predictions_of_training(export, smoke_run: Path):
    assert export(f"run={smoke_run}", "out=network.onnx").code == 0
    assert [path.name for path in Path().glob("*network*")] == ["network.onnx"]
    session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
    rows = build(config("data.source=sample"), "data").dataset.splits["test"]
    trained = pd.read_parquet(smoke_run / "predictions.parquet")
    for size in (1, 2, 1500):
        given = {"levels": rows.levels[:size].long().numpy(), "numbers": rows.numbers[:size].numpy()}
        predictions, gates = session.run(["predictions", "gates"], given)
        expected = trained[["income_probability", "marital_probability"]][:size]
        assert np.abs(predictions - expected.to_numpy()).max() < 1e-5
        np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-5)
        assert gates.shape == (size, 2, 8)
    (entry,) = [entry for entry in onnx.load("network.onnx").metadata_props if entry.key == "schema"]
    assert Schema.from_json(entry.value) == load(smoke_run).schema


def test_torch_export_runs_without_mmoe(export, smoke_run: Path):
    result = export(f"run={smoke_run}", "format=torch_export", "out=network.pt2")
    assert result.code == 0, result.err
    code = (
        "import sys, json, torch; extra = {'schema.json': ''}\n"
        "network = torch.export.load('network.pt2', extra_files=extra).module()\n"
        "schema = json.loads(extra['schema.json'])\n"
        "counts = [len(column['levels']) for column in schema['categorical']]\n"
        "levels = torch.tensor([[sum(counts[:i]) for i in range(len(counts))]] * 5)\n"  # the first levels
        "predictions, gates = network(levels, torch.zeros(5, len(schema['numeric'])))\n"
        "assert not any(name.startswith('mmoe') for name in sys.modules)\n"
        "print(json.dumps(predictions.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    network = load(smoke_run).network()
    schema = load(smoke_run).schema
    counts = [len(column.levels) for column in schema.categorical]
    levels = torch.tensor([[sum(counts[:i]) for i in range(len(counts))]] * 5)
    logits = network(levels, torch.zeros(5, len(schema.numeric))).logits
    np.testing.assert_allclose(json.loads(done.stdout), logits.sigmoid().detach(), atol=1e-6)


STATIC = ["model=dselect_k", "model.is_static=true"]


@pytest.mark.parametrize("model", [*([f"model={model}"] for model in MODELS), STATIC], ids="-".join)
def test_every_method_is_exported(train, model: list[str]):
    options = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "logger=none"]
    assert train("experiment=smoke", *options, *model, "inputs=embedding", "hydra.run.dir=run").code == 0
    path, largest = write_export(load("run"))
    assert path == Path("run/network.onnx")
    assert path.is_file()
    assert largest < 1e-5


def test_a_regression_is_a_number(train):
    small = ["data.rows=64", "data.batch_size=32", "data.eval_rows=50", "trainer.max_epochs=1", "logger=none"]
    assert train("experiment=synthetic", *small, "replicas=2", "hydra.run.dir=run").code == 0
    write_export(load("run"), replica=1)
    session = onnxruntime.InferenceSession("run/network_1.onnx", providers=["CPUExecutionProvider"])
    rows = build(config("experiment=synthetic", *small, "seed=1"), "data").dataset.splits["test"]
    predictions, _ = session.run(
        None, {"levels": np.zeros((50, 0), np.int64), "numbers": rows.numbers.numpy()}
    )
    trained = pd.read_parquet("run/predictions.parquet")[["task1_prediction_1", "task2_prediction_1"]]
    np.testing.assert_allclose(predictions, trained, atol=1e-4)


def test_predictions_that_differ_are_not_written(smoke_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.export.TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="the predictions differ from the network's"):
        write_export(load(smoke_run), "torch_export", Path("network.pt2"))
    assert not list(Path().glob("*network*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=tflite"], "format=tflite: must be onnx or torch_export"),
        (["out=network.bin"], "out=network.bin: must end with .onnx"),
        (["checkpoint=first"], "checkpoint=first: must be all or one of "),
        (["replica=1"], "replica=1: the run has no replicas"),
    ],
)
def test_mistakes(export, smoke_run: Path, arguments: list[str], message: str):
    result = export(f"run={smoke_run}", *arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert not list(smoke_run.glob("network*"))


def test_random_rows_have_no_level_twice():
    """Encoded rows have none either, and the forms of a network may count a level that is there twice."""
    levels = ("a", "b", "c")
    schema = Schema(
        (Categorical("one", levels), Categorical("many", levels, is_multi=True, max_values=3)), (), ()
    )
    rows, _ = random_inputs(schema, 500)
    for row in rows[:, 1:]:
        known = row[row < schema.num_codes]
        assert len(known.unique()) == len(known)
    assert {int((row < schema.num_codes).sum()) for row in rows[:, 1:]} == {0, 1, 2, 3}
