"""The paper's synthetic tasks."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import config

from mmoe import load
from mmoe.build import build
from mmoe.data.schema import Schema
from mmoe.data.synthetic_generator import RowGenerator
from mmoe.extract import extract
from mmoe.training.preparation import build_learner

QUICK = [
    "experiment=synthetic",
    "trainer.max_epochs=2",
    "data.rows=640",
    "data.batch_size=32",
    "data.eval_rows=100",
    "logger=none",
]


def correlation(generator: RowGenerator) -> float:
    labels = generator.rows([3], 0, 40_000).labels
    return torch.corrcoef(labels.T)[0, 1].item()


@pytest.mark.parametrize("seed", [0, 7])
def test_directions_are_orthonormal(seed: int):
    u = RowGenerator(0.5, tasks=3).directions(seed)
    torch.testing.assert_close(u @ u.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("p", [-1.0, -0.3, 0.0, 0.5, 0.9, 1.0])
def test_weights_have_the_cosine_and_the_norm(p: float):
    generator = RowGenerator(p, c=0.7)
    w = generator.weights(1)
    assert torch.cosine_similarity(w[0], w[1], dim=0).item() == pytest.approx(p, abs=1e-6)
    torch.testing.assert_close(w.norm(dim=1), torch.full((2,), 0.7, dtype=torch.float64))
    u = generator.directions(1)  # the paper's equation 3
    torch.testing.assert_close(w[0], 0.7 * u[0])
    torch.testing.assert_close(w[1], 0.7 * (p * u[0] + math.sqrt(1 - p**2) * u[1]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("p", [-1 / 3, 0.0, 0.5, 1.0])
def test_more_tasks_all_have_the_cosine(p: float):
    w = RowGenerator(p, tasks=4).weights(0)
    cosines = w @ w.T
    expected = torch.full((4, 4), p, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0)


def test_labels_follow_the_equation():
    generator = RowGenerator(0.5, c=0.5, m=3, a=[1.0, 5.0, 9.0], b=[0.1, 0.2, 0.3], noise_variance=0.0)
    rows = generator.rows([4], 2, 50)
    s = rows.numbers.double() @ generator.weights(4).T
    y = s + torch.sin(s + 0.1) + torch.sin(5 * s + 0.2) + torch.sin(9 * s + 0.3)
    torch.testing.assert_close(rows.labels.double(), y, atol=1e-4, rtol=0)
    noisy = RowGenerator(0.5, c=0.5, m=0, noise_variance=0.01).rows([4], 2, 20_000)
    noise = noisy.labels - noisy.numbers @ (0.5 * generator.weights(4).T.float() / 0.5)
    assert noise.var().item() == pytest.approx(0.01, rel=0.05)


def test_inputs_are_standard_normal():
    x = RowGenerator(0.5).rows([0], 0, 5_000).numbers
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    assert x.var().item() == pytest.approx(1, abs=0.01)


def test_label_correlation_rises_with_the_cosine_to_one():
    options = {"c": 0.42, "m": 2, "a": [7.0, 17.0], "b": [-1.6, -1.6]}
    found = [correlation(RowGenerator(p, **options)) for p in (0.0, 0.4, 0.8, 0.95, 1.0)]
    assert found == sorted(found)
    assert abs(found[0]) < 0.02
    assert found[-1] == pytest.approx(1 / (1 + 0.01 / 1.18), abs=0.002)  # less than 1 because of the noise
    assert correlation(RowGenerator(1.0, **options, noise_variance=0.0)) == pytest.approx(1, abs=1e-6)


def test_the_rows_of_a_seed_do_not_depend_on_other_seeds():
    generator = RowGenerator(0.5, m=2)
    together = generator.rows([5, 6, 7], 3, 20)
    assert all(map(torch.equal, together[:3], generator.rows([5, 6, 7], 3, 20)[:3]))
    for r, seed in enumerate((5, 6, 7)):
        alone = generator.rows([seed], 3, 20)
        assert torch.equal(together.numbers[r], alone.numbers)
        torch.testing.assert_close(together.labels[r], alone.labels)
    assert not torch.equal(together.numbers[0], together.numbers[1])
    assert not torch.equal(together.numbers, generator.rows([5, 6, 7], 4, 20).numbers)


@pytest.mark.parametrize("stream", [True, False])
def test_a_streamed_epoch_has_new_rows(stream: bool):
    data = build(config(*QUICK, f"data.stream={stream}"), "data")
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([batch.labels for batch in loader]))
    assert len(epochs[0]) == 640
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0].sort(0).values, epochs[1].sort(0).values) != stream


def test_ranks_share_every_batch():
    data = build(config(*QUICK), "data")
    alone = torch.cat([batch.labels for batch in data.train_dataloader()])
    parts = []
    for rank in (0, 1):
        loader = data.train_dataloader()
        loader.rank, loader.world_size = rank, 2
        parts.append(torch.cat([batch.labels for batch in loader]))
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), alone)


@pytest.mark.parametrize("stream", [True, False])
def test_a_replica_is_the_run_with_its_seed(stream: bool):
    def losses(*overrides: str) -> torch.Tensor:
        composed = config(*QUICK, f"data.stream={stream}", *overrides)
        data = build(composed, "data")
        learner = build_learner(composed, data.schema)
        optimizer = learner.configure_optimizers()["optimizer"]
        loader = data.train_dataloader()
        loader.seed = 0  # replicas share the order of a fixed set
        steps = []
        for batch in loader:
            loss = learner._compute(batch).loss
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            steps.append(loss.detach())
        return torch.stack(steps, dim=-1)

    together = losses("replicas=3", "seed=4")
    for r in range(3):
        torch.testing.assert_close(together[r], losses(f"seed={4 + r}"), atol=1e-5, rtol=1e-4)


def test_the_command_line_and_a_run_folder(train):
    assert train(*QUICK, "replicas=3", "seed=2", "hydra.run.dir=run").code == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["row_origin"] == "synthetic"
    assert set(metrics["test"]) == {"task1", "task2"}
    schema = Schema.from_json(Path("run/schema.json").read_text())
    assert [task.kind for task in schema.tasks] == ["regression"] * 2
    frame = pd.read_parquet("run/predictions.parquet")
    for r in range(3):
        error = (frame[f"task1_label_{r}"] - frame[f"task1_prediction_{r}"]).pow(2).mean()
        assert metrics["runs"][r]["test"]["task1"]["mse"] == pytest.approx(error, rel=1e-5)
    history = pd.read_csv("run/history.csv")
    assert history["seed"].tolist() == [2, 3, 4] * 2
    assert history["step"].tolist() == [20] * 3 + [40] * 3
    best = history.groupby("seed")["val/task1/mse"].min()
    assert [run["val"]["task1"]["mse"] for run in metrics["runs"]] == pytest.approx(best.tolist(), rel=1e-5)

    # An extracted replica is a run with its own rows.
    extract(load("run"), 1, Path("one"))
    network = load("one").network()
    composed = config(*QUICK, "seed=3")
    rows = build(composed, "data").dataset.splits["test"]
    expected = network(rows.levels, rows.numbers).logits[:, 0].detach().numpy()
    one = pd.read_parquet("one/predictions.parquet")
    assert one["task1_prediction"].to_numpy() == pytest.approx(expected, abs=1e-4)
    assert one["task1_label"].to_numpy() == pytest.approx(rows.labels[:, 0].numpy(), abs=1e-5)


def test_three_tasks_with_another_main_task_and_a_fixed_set(train):
    options = ["data.tasks=3", "data.main_task=task2", "data.stream=false"]
    result = train(*QUICK, *options, "data.a=null", "data.b=null", "data.m=4")
    assert result.code == 0
    assert "generated rows" in result.out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.p=1.1", "data.p=1.1: must be a cosine in [-1, 1]"),
        ("data.p=-2", "data.p=-2: must be a finite number of at least -1"),
        ("data.p=.nan", "data.p=.nan: must be a finite number of at least -1"),
        ("data.m=-1", "data.m=-1: must be an integer of at least 0"),
        ("data.d=1", "data.d=1: must be an integer of at least 2"),
        ("data.tasks=1", "data.tasks=1: must be an integer of at least 2"),
        ("data.a=[1]", "data.a=[1]: must have m=2 values"),
        ("data.b=[1,x]", "data.b=[1, 'x']: must be finite numbers"),
        ("data.rows=0", "data.rows=0: must be an integer of at least 2"),
        ("data.noise_variance=-1", "data.noise_variance=-1: must be a finite number of at least 0"),
        ("data.main_task=task3", "data.main_task=task3: must be one of task1, task2"),
        ("monitor=val/task1/auroc", "monitor=val/task1/auroc: must be one of val/task1/mse, val/task1/rmse"),
        ("monitor_mode=max", "monitor_mode=max: must be min for val/task1/mse"),
    ],
)
def test_mistakes(train, override: str, message: str):
    result = train(*QUICK, override)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1
    assert not list(Path("runs").glob("*/*"))


def test_three_tasks_cannot_have_cosines_of_minus_one(train):
    result = train(*QUICK, "data.tasks=3", "data.p=-.6")
    assert result.code == 2
    assert result.err == (
        "error: data.p=-0.6: must be at least -0.5, the lowest cosine that all pairs of 3 tasks can have\n"
    )
