"""Each replica trains exactly as it does alone."""

import contextlib
import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import processes
import pytest
import torch
from conftest import config, models
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mmoe import Replicas, load
from mmoe.build import build
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.models.inputs import Inputs
from mmoe.models.mmoe import MMoE
from mmoe.train import main as train_main
from mmoe.training import checkpoints
from mmoe.training.preparation import build_learner, build_network

MODELS = models("esmm")


def learners(count: int, *overrides: str):
    """One learner of `count` replicas, `count` single learners with the same seeds, and the data module."""
    arguments = ["data.source=sample", *overrides]
    data = build(config(*arguments), "data")
    together = build_learner(config(*arguments, f"replicas={count}", "seed=5"), data.schema)
    alone = [build_learner(config(*arguments, f"seed={5 + r}"), data.schema) for r in range(count)]
    return together, alone, data


def train(learner, data, steps: int, is_encoded: bool = False) -> list[torch.Tensor]:
    """The losses of the first steps, [] or [R], with or without rows that were encoded before."""
    optimizer = learner.configure_optimizers()["optimizer"]
    losses = []
    loader = data.train_dataloader()
    if is_encoded:
        loader.encode_with(partial(learner.network.encode_rows, batch_size=data.batch_size))
        assert loader.rows.sparse is not None
    for _, batch in zip(range(steps), loader, strict=False):
        loss = learner.objective(*batch).loss
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


HIDDEN = "model.column_share=0.5"  # each unit sees columns that are drawn at random
HIDDEN_IN_MEMBERS = ["model=ensemble", "model.size=2", "model.member.column_share=0.5"]


@pytest.mark.parametrize("overrides", [*([f"model={one}"] for one in MODELS), [HIDDEN], HIDDEN_IN_MEMBERS])
def test_every_method_trains_as_it_does_alone(overrides: list[str]):
    together, alone, data = learners(3, *overrides)
    ours = torch.stack(train(together, data, 20), dim=1)
    theirs = torch.stack([torch.stack(train(learner, data, 20)) for learner in alone])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert len({round(loss, 4) for loss in ours[:, 0].tolist()}) == 3


SPARSE = [one for one in MODELS if one != "tensor_factorization"]
ENSEMBLE = ["model=ensemble", "model.size=2"]


@pytest.mark.parametrize(
    "overrides",
    [*([f"model={one}"] for one in SPARSE), [HIDDEN], HIDDEN_IN_MEMBERS, ENSEMBLE],
)
def test_sparse_inputs_give_what_dense_ones_give(overrides: list[str]):
    losses = []
    for is_encoded in (True, False):
        together, _, data = learners(3, *overrides, "data.batch_size=128")
        losses.append(torch.stack(train(together, data, 20, is_encoded)))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-4)


class WrappedInputs(nn.Module):
    """Inputs of a user's own, which take levels and numbers only."""

    def __init__(self, schema: Schema, **options: Any) -> None:
        super().__init__()
        self.base = Inputs(schema, **options)
        self.num_outputs, self.input_groups = self.base.num_outputs, self.base.input_groups

    def forward(self, levels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.base(levels, numbers)


class ScaledInputs(WrappedInputs):
    """A learned step before other inputs: inside vmap, the numbers differ by replica."""

    def __init__(self, schema: Schema, **options: Any) -> None:
        super().__init__(schema, **options)
        self.scale = nn.Parameter(torch.rand(len(schema.numeric)) + 0.5)

    def forward(self, levels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.base(levels, numbers * self.scale)


def test_inputs_with_a_learned_step_before_others():
    together, alone, data = learners(2, "inputs._target_=test_replicas.ScaledInputs", "data.batch_size=128")
    ours = torch.stack(train(together, data, 5), dim=1)
    theirs = torch.stack([torch.stack(train(learner, data, 5)) for learner in alone])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_inputs_that_contain_others_stay_dense():
    own = ["inputs._target_=test_replicas.WrappedInputs", "data.batch_size=128"]
    together, alone, data = learners(2, *own)
    for learner in (together, alone[0]):
        loader = data.train_dataloader()
        loader.encode_with(partial(learner.network.encode_rows, batch_size=data.batch_size))
        batch = next(iter(loader))
        assert batch.sparse is None
        assert learner.objective(*batch).loss.isfinite().all()


@pytest.mark.parametrize("overrides", [[HIDDEN], HIDDEN_IN_MEMBERS])
def test_a_replica_in_a_checkpoint_is_the_network_alone(overrides: list[str]):
    together, alone, _ = learners(2, *overrides)
    for replica, learner in enumerate(alone):
        network = learner.objective.network
        checkpoint = {"state_dict": together.state_dict()}
        found = checkpoints.network_weights(checkpoint, network, replicas=2, replica=replica)
        expected = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_learned_inputs_are_stacked_too():
    together, alone, data = learners(2, "inputs=embedding")
    ours = torch.stack(train(together, data, 20), dim=1)
    theirs = torch.stack([torch.stack(train(learner, data, 20)) for learner in alone])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_dropout_differs_by_replica():
    torch.manual_seed(0)
    model = MMoE(10, 2, dropout=0.5, gate_dropout=0.3)
    logits, gates = Replicas([model] * 3)(torch.randn(20, 10))
    assert not torch.equal(logits[0], logits[1])
    assert not torch.equal(gates[1], gates[2])


def test_each_replica_may_have_rows_of_its_own():
    models = [MMoE(10, 2) for _ in range(3)]
    x = torch.randn(3, 20, 10)
    together = Replicas(models)(x, own_rows=True)
    for r, model in enumerate(models):
        torch.testing.assert_close(together.logits[r], model(x[r]).logits)
    labels = torch.rand(3, 20, 2).round()
    binary_cross_entropy_with_logits(together.logits, labels).backward()


@pytest.mark.parametrize("own_rows", [True, False])
def test_networks_get_levels_in_large_batches(own_rows: bool):
    data = build(config("experiment=smoke"), "data")
    networks = [build_network(config("experiment=smoke"), data.schema) for _ in range(2)]
    rows = data.dataset.splits["train"].map(lambda tensor: tensor[:256])
    levels, numbers = rows.levels.unflatten(0, (2, 128)), rows.numbers.unflatten(0, (2, 128))
    replicas = Replicas(networks)
    given = (levels, numbers) if own_rows else (levels[0], numbers[0])
    together = replicas(*given, own_rows=own_rows)
    for r, network in enumerate(networks):
        place = r if own_rows else 0
        alone = network(levels[place], numbers[place])
        torch.testing.assert_close(together.logits[r], alone.logits, atol=1e-5, rtol=1e-4)
    wrong = levels.clone()
    wrong[0, 5, 0] = -2
    with pytest.raises(UserError, match="level"):
        replicas(wrong if own_rows else wrong[0], given[1], own_rows=own_rows)
    assert torch.equal(replicas(*given, own_rows=own_rows).logits, together.logits)  # the error left no trace


def test_frozen_and_tied_parameters_stay_so():
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
        layers[2].weight = layers[0].weight
        layers[3].weight.requires_grad = False
        return layers

    networks = [network(seed) for seed in range(3)]
    replicas = Replicas(networks)
    assert replicas.stacked[2].weight is replicas.stacked[0].weight
    for rows in (1, 3, 5):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(replicas(x), torch.stack([network(x) for network in networks]))
    replicas(x).square().sum().backward()
    for network in networks:
        network(x).square().sum().backward()
    for name, parameter in replicas.parameters_by_name().items():
        own = [network.get_parameter(name) for network in networks]
        assert parameter.requires_grad == own[0].requires_grad
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, torch.stack([one.grad for one in own]))


def test_the_given_modules_do_not_change():
    models = [MMoE(10, 2) for _ in range(2)]
    replicas = Replicas(models)
    assert {n: p.shape[1:] for n, p in replicas.parameters_by_name().items()} == {
        n: p.shape for n, p in models[0].named_parameters()
    }
    assert torch.equal(replicas.parameters_by_name()["weight"][1], models[1].weight)
    replicas(torch.randn(4, 10)).logits.sum().backward()
    assert models[0].weight.grad is None


def test_the_logged_loss_is_the_mean_over_replicas():
    together, alone, data = learners(3)
    rows, logged = next(iter(data.train_dataloader())), {}
    together._trainer = SimpleNamespace(world_size=1, log_every_n_steps=1, global_step=0)
    together.log = lambda name, value, **_: logged.update({name: value.item()})
    losses = [learner.objective(*rows).loss.item() for learner in alone]
    assert together.training_step(rows, 0).item() == pytest.approx(sum(losses), rel=1e-5)
    assert logged == {"train/loss": pytest.approx(sum(losses) / 3, rel=1e-5)}


@pytest.mark.slow
def test_a_run_of_replicas_equals_single_runs(train):
    common = [
        "experiment=smoke",
        "callbacks.early_stopping.patience=1",
        "trainer.max_epochs=6",
        "logger=none",
    ]
    assert train(*common, "replicas=3", "seed=4", "hydra.run.dir=together").code == 0
    together = json.loads(Path("together/metrics.json").read_text())
    assert [run["seed"] for run in together["runs"]] == [4, 5, 6]
    frame = pd.read_parquet("together/predictions.parquet")
    for r, run in enumerate(together["runs"]):
        assert train(*common, f"seed={4 + r}", "data.seed=4", f"hydra.run.dir=alone{r}").code == 0
        alone = json.loads(Path(f"alone{r}/metrics.json").read_text())
        assert run["epoch"] == alone["epoch"]
        for split in ("val", "test"):
            for task in ("income", "marital"):
                assert run[split][task] == pytest.approx(alone[split][task], abs=2e-4)
        predicted = pd.read_parquet(f"alone{r}/predictions.parquet")["income_probability"]
        np.testing.assert_allclose(frame[f"income_probability_{r}"], predicted, atol=1e-3)

    areas = np.array([run["test"]["income"]["auroc"] for run in together["runs"]])
    assert together["test"]["income"]["auroc"] == pytest.approx(areas.mean())
    assert together["std"]["test"]["income"]["auroc"] == pytest.approx(areas.std(ddof=1))
    # Student's t with 2 degrees of freedom: 4.303.
    half = 4.30265 * areas.std(ddof=1) / 3**0.5
    assert together["half_interval"]["test"]["income"]["auroc"] == pytest.approx(half, rel=1e-4)


def test_a_replica_that_stopped_early_keeps_its_weights():
    together, _, _ = learners(2)
    together.patience = 1
    together.trainer = type("T", (), {"should_stop": False, "current_epoch": 0})()
    weight = together.objective.parameters_by_name()["network.model.weight"]
    history = []
    for values in ([0.5, 0.5], [0.6, 0.4], [0.5, 0.9]):
        with torch.no_grad():
            weight.add_(1.0)
        history.append(weight.detach().clone())
        together._keep_best(*[torch.tensor(values, dtype=torch.float64)] * 2)
    kept = dict(together.best.named_parameters())["network.model.weight"]
    assert torch.equal(kept[0], history[1][0])
    assert torch.equal(kept[1], history[0][1])  # 0.9 came after its early stop
    assert together.trainer.should_stop
    together.restore_best()
    assert torch.equal(together.objective.parameters_by_name()["network.model.weight"], kept)


def stops_after(patience: int, min_delta: float, values: list[float]) -> int:
    """The number of validations after which two replicas with the same values both stop."""
    together, _, _ = learners(2, f"callbacks.early_stopping.patience={patience}")
    together.min_delta = min_delta
    together.trainer = type("T", (), {"should_stop": False, "current_epoch": 0})()
    for count, value in enumerate(values, 1):
        together._keep_best(*[torch.tensor([value] * 2, dtype=torch.float64)] * 2)
        if together.trainer.should_stop:
            return count
    return 0


def lightning_stops_after(patience: int, min_delta: float, values: list[float]) -> int:
    stop = EarlyStopping("a", patience=patience, min_delta=min_delta, mode="max")
    for count, value in enumerate(values, 1):
        if stop._evaluate_stopping_criteria(torch.tensor(value))[0]:
            return count
    return 0


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
@pytest.mark.parametrize("min_delta", [0.0, 0.05, 1.0])
def test_replicas_stop_when_lightning_would(patience: int, min_delta: float):
    values = [0.5, 0.52, 0.54, 0.56, 0.5, 0.6, 0.6, 0.61, 0.1, 0.1, 0.1, 0.1]
    expected = lightning_stops_after(patience, min_delta, values)
    assert stops_after(patience, min_delta, values) == expected > 0


def test_replicas_follow_the_settings_of_the_callbacks():
    stop = {"monitor": "val/marital/log_loss", "mode": "min", "patience": 7}
    options = [f"callbacks.early_stopping.{key}={value}" for key, value in stop.items()]
    best = ["callbacks.best.monitor=val/marital/auroc", "callbacks.best.mode=max"]
    together, _, _ = learners(2, *options, "+callbacks.early_stopping.min_delta=0.01", *best)
    assert (together.best_monitor, together.best_sign) == ("val/marital/auroc", 1)
    assert (together.stop_monitor, together.stop_sign) == ("val/marital/log_loss", -1)
    assert (together.patience, together.min_delta) == (7, 0.01)
    for wrong, message in (
        ("+callbacks.best.save_top_k=3", "callbacks.best.save_top_k: replicas do not have it"),
        ("+callbacks.early_stopping.stopping_threshold=1", "callbacks.early_stopping.stopping"),
        ("+callbacks.best.every_n_epochs=5", "callbacks.best.every_n_epochs: replicas do not have it"),
        ("+callbacks.early_stopping.check_finite=false", "callbacks.early_stopping.check_finite: re"),
        (
            "callbacks.best._target_=pytorch_lightning.callbacks.ModelCheckpoint",
            "callbacks.best._target_=pyto",
        ),
        ("callbacks.early_stopping.patience=-1", "learner.patience=-1: must be an integer of at least 0"),
        ("callbacks.best.monitor=val/a/auroc", "learner.best_monitor=val/a/auroc: must be one of val/income"),
        (
            "callbacks.early_stopping.monitor=train/income/auroc",
            "learner.stop_monitor=train/income/auroc: must",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            learners(2, wrong)


def test_each_replica_is_clipped_by_its_own_norm():
    """The gradients equal those that `clip_grad_norm_` gives each learner alone."""
    together, alone, data = learners(3, "inputs=embedding")
    batch = next(iter(data.train_dataloader()))
    together.objective(*batch).loss.sum().backward()
    together.configure_gradient_clipping(None, 0.05, "norm")
    clipped = {name: p.grad for name, p in together.objective.parameters_by_name().items()}
    for r, learner in enumerate(alone):
        learner.objective(*batch).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learner.objective.parameters(), 0.05)
        assert norm > 0.05
        for name, parameter in learner.objective.named_parameters():
            torch.testing.assert_close(clipped[name][r], parameter.grad, atol=1e-6, rtol=1e-4)


def test_each_member_of_an_ensemble_is_clipped_by_its_own_norm():
    _, (learner,), data = learners(1, "model=ensemble", "model.size=3")
    batch = next(iter(data.train_dataloader()))
    learner.objective(*batch).loss.backward()
    stacked = list(learner.objective.network.model.members.parameters())
    before = [p.grad.clone() for p in stacked]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in before]).norm(dim=0)  # [M]
    limit = norms.sort().values[1].item()
    learner.configure_gradient_clipping(None, limit, "norm")
    for gradient, parameter in zip(before, stacked, strict=True):
        scale = (limit / norms).clamp(max=1).view(-1, *[1] * (gradient.ndim - 1))
        torch.testing.assert_close(parameter.grad, gradient * scale, atol=1e-7, rtol=1e-4)


def test_a_replica_without_a_validation_keeps_its_last_weights():
    together, _, _ = learners(2)
    weight = together.objective.parameters_by_name()["network.model.weight"]
    with torch.no_grad():
        weight.add_(1.0)
    last = weight.detach().clone()
    together.best_epoch[0] = 1  # its best weights are the initial ones
    together.restore_best()
    now = together.objective.parameters_by_name()["network.model.weight"]
    assert torch.equal(now[0], dict(together.best.named_parameters())["network.model.weight"][0])
    assert torch.equal(now[1], last[1])


@pytest.mark.slow
def test_lightnings_sanity_check_does_not_count_as_a_validation(train):
    options = ["experiment=smoke", "replicas=2", "logger=none", "trainer.max_epochs=1"]
    assert train(*options, "trainer.num_sanity_val_steps=2", "hydra.run.dir=a").code == 0
    assert train(*options, "hydra.run.dir=b").code == 0
    assert Path("a/history.csv").read_bytes() == Path("b/history.csv").read_bytes()
    assert Path("a/predictions.parquet").read_bytes() == Path("b/predictions.parquet").read_bytes()


def test_without_a_validation_the_last_weights_are_stored(train):
    arguments = ["experiment=smoke", "replicas=2", "logger=none"]
    assert train(*arguments, "+trainer.max_steps=20").code == 0
    (folder,) = Path("runs/smoke").iterdir()
    learner = build_learner(config(*arguments), build(config(*arguments), "data").schema)
    start = learner.objective.parameters_by_name()["network.model.weight"]
    for r in range(2):
        assert not torch.equal(load(folder).network(replica=r).model.weight, start[r])


def test_each_replica_can_be_loaded(train):
    assert train("experiment=smoke", "replicas=2", "trainer.max_epochs=1", "logger=none").code == 0
    (folder,) = Path("runs/smoke").iterdir()
    frame = pd.read_parquet(folder / "predictions.parquet")
    data = build(config("data.source=sample"), "data")
    rows = data.dataset.splits["test"]
    for r in range(2):
        logits = load(folder).network(replica=r)(rows.levels, rows.numbers).logits
        np.testing.assert_allclose(
            frame[f"marital_probability_{r}"], logits[:, 1].double().sigmoid().detach(), atol=1e-6
        )
    for wrong in (None, 2, -1):
        with pytest.raises(ValueError, match=r"^replica.*: must be 0 to 1, because the run has 2 replicas"):
            load(folder).network(replica=wrong)


@pytest.mark.slow
def test_a_replica_becomes_a_run_folder(train, command):
    assert train("experiment=smoke", "replicas=3", "trainer.max_epochs=2", "seed=7").code == 0
    (folder,) = Path("runs/smoke").iterdir()
    extract = command("extract")
    done = extract(f"run={folder}", "replica=1")
    out = folder / "replica_1"
    assert (done.code, done.out) == (0, f"run folder: {out}\n")
    metrics = json.loads((folder / "metrics.json").read_text())
    ours = json.loads((out / "metrics.json").read_text())
    assert ours["seed"] == 8
    assert ours["test"] == metrics["runs"][1]["test"]
    assert "runs" not in ours
    frame = pd.read_parquet(out / "predictions.parquet")
    everything = pd.read_parquet(folder / "predictions.parquet")
    assert np.array_equal(frame["income_probability"], everything["income_probability_1"])
    network = load(out).network()
    for a, b in zip(network.parameters(), load(folder).network(replica=1).parameters(), strict=True):
        assert torch.equal(a, b)
    rows = build(config("data.source=sample"), "data").dataset.splits["test"]
    probabilities = network(rows.levels, rows.numbers).logits.double().sigmoid().detach()
    np.testing.assert_allclose(frame["income_probability"], probabilities[:, 0], atol=1e-6)

    Path("here").mkdir()
    with contextlib.chdir("here"):
        assert extract(f"run={Path('..') / folder}", "replica=1", "out=.").code == 0
    assert Path("here/metrics.json").read_bytes() == (out / "metrics.json").read_bytes()

    # The folder's configuration repeats the run.
    again = ["--config-path", str(out.absolute()), "--config-name", "config", "hydra.run.dir=again"]
    assert processes.run(train_main, *again).returncode == 0
    repeated = json.loads(Path("again/metrics.json").read_text())
    assert repeated["epoch"] == ours["epoch"]
    assert repeated["test"]["income"] == pytest.approx(ours["test"]["income"], abs=2e-4)
    for wrong, message in (
        ("replica=1", "must not hold a run already"),
        ("replica=3", "replica=3: must be 0 to 2, because the run has 3 replicas"),
    ):
        done = extract(f"run={folder}", wrong)
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("replicas", [1, 8])
def test_every_method_trains_from_the_command_line(train, model: str, replicas: int):
    arguments = [
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=3",
        "data.source=sample",
        "logger=none",
    ]
    assert train("experiment=census", f"model={model}", f"replicas={replicas}", *arguments).code == 0
    (folder,) = Path("runs/census").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    network = load(folder).network(replica=None if replicas == 1 else 0)
    assert metrics["parameters"] == sum(p.numel() for p in network.parameters())
    assert len(metrics.get("runs", [None])) == replicas


def test_bad_numbers_of_replicas(train):
    result = train("experiment=smoke", "replicas=0")
    assert result.code == 2
    assert result.err == "error: replicas=0: must be an integer of at least 1\n"
    result = train("experiment=smoke", "model=mlp")
    assert result.code == 2
    assert "Could not find 'model/mlp'" in result.err
