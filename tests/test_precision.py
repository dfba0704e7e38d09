"""Half precision rounds weights and activations, but neither labels nor raw numbers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from omegaconf import OmegaConf

import mmoe
from mmoe.data.batch import Batch
from mmoe.models.inputs import Inputs
from mmoe.training.learner import Learner

ROWS, CLASSES = 3000, 600


@pytest.fixture
def train_mine(train: Command) -> Command:
    """Rows whose class numbers and numbers are too large for half precision."""
    random = np.random.default_rng(0)
    label = np.arange(ROWS) % CLASSES
    frame = pd.DataFrame({"y": [f"c{n:03d}" for n in label], "x": label * 1000 + random.integers(0, 9, ROWS)})
    frame.assign(z=np.sin(label), w=1 + label / 1000).to_csv("rows.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    config = {
        "_target_": "mmoe.data.table_data.TableData", "train": "rows.csv", "test": {"fraction": 0.3},
        "columns": {"x": "numeric"}, "weight": "w",
        "tasks": {
            "y": {"column": "y", "kind": "multiclass"}, "x": {"column": "z", "kind": "regression"},
            "click": {"column": "y", "positive": ["c001"]},
        },
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), "conf/data/mine.yaml")
    quick = ["trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    return lambda *overrides: train("--config-dir", "conf", "data=mine", *quick, *overrides)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("options", [[], ["replicas=2"]])
def test_labels_weights_and_raw_numbers_keep_their_digits(
    train_mine: Command, monkeypatch: pytest.MonkeyPatch, precision: str, options: list[str]
):
    seen: list[Batch] = []
    dtypes = set()
    compute, dense = Learner._step, Inputs.dense

    def step(self: Learner, batch: Batch, stage: str, number: int) -> torch.Tensor:
        seen.append(batch)
        return compute(self, batch, stage, number)

    def encode(self: Inputs, *rows: object) -> torch.Tensor:
        x = dense(self, *rows)
        dtypes.add(x.dtype)
        return x

    if not options:
        monkeypatch.setattr(Learner, "_step", step)
    monkeypatch.setattr(Inputs, "dense", encode)
    done = train_mine(f"trainer.precision={precision}", *options)
    assert done.code == 0, done.err
    run = mmoe.load("run")
    assert torch.bfloat16 in dtypes or torch.float16 in dtypes
    rows = run.data.dataset.splits
    for batch in seen:
        assert {batch.labels.dtype, batch.numbers.dtype, batch.weights.dtype} == {torch.float32}
        assert set(batch.numbers.flatten().tolist()) <= set(
            torch.cat([split.numbers for split in rows.values()]).flatten().tolist()
        )
    if seen:
        largest = max(split.labels[:, 0].max() for split in rows.values())
        assert max(batch.labels[:, 0].max() for batch in seen) == largest > 500
    labels = rows["test"].labels[:, 0].long()
    found = run.predictions
    columns = [name for name in found if name.startswith("y_probability_") and name.endswith("_0")]
    columns = columns if options else [name for name in found if name.startswith("y_probability_")]
    probability = torch.tensor(found[columns].to_numpy())
    known = slice(None) if rows["test"].known is None else rows["test"].known[:, 0]
    loss = -probability.gather(1, labels[:, None]).log()[known].mean().item()
    metrics = run.metrics["runs"][0] if options else run.metrics
    assert metrics["test"]["y"]["log_loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_run_is_evaluated_in_its_precision(train_mine: Command, precision: str):
    assert train_mine(f"trainer.precision={precision}").code == 0
    run = mmoe.load("run")
    assert run.config.trainer.precision == precision
    (line,) = run.evaluate(resamples=0)["checkpoints"]
    for task, values in line["metrics"].items():
        assert values == pytest.approx(run.metrics["test"][task], nan_ok=True)
