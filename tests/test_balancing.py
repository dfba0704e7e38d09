"""Trainings with balanced tasks: shared weights, gradients, every method, replicas, and bad input."""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import Command, balanced_table
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from mmoe import CONF_DIR, ESMM, MMoE, Network, Objective, Schema, analysis
from mmoe.balancing.aggregation import CAGrad
from mmoe.balancing.balancer import Balancer, RunningMean
from mmoe.balancing.shared_entries import shared_entries
from mmoe.balancing.strategies import Constant
from mmoe.balancing.task_gradients import TaskGradients
from mmoe.data.columns import Categorical, Numeric
from mmoe.errors import UserError
from mmoe.models.cross_stitch import CrossStitch
from mmoe.models.ensemble import Ensemble
from mmoe.models.inputs import Inputs
from mmoe.models.l2_constrained import L2Constrained
from mmoe.models.mmoe import OMoE
from mmoe.models.ple import PLE
from mmoe.models.single_task import SingleTask
from mmoe.tasks import Binary, logit_columns
from mmoe.training.trust import check_targets

STRATEGIES = sorted(path.stem for path in (CONF_DIR / "balance").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
SCHEMA = Schema((Categorical("a", ("x", "y")),), (Numeric("n", 0.0, 1.0, (0.0, 1.0)),), ())
TASKS = (Binary("c", ("x",), name="one"), Binary("c", ("x",), name="two"))
COLUMNS = logit_columns(TASKS)


def network_of(method: Callable[..., nn.Module], **options: Any) -> Network:
    torch.manual_seed(0)
    inputs = Inputs(SCHEMA)
    return Network(inputs, method(inputs.num_outputs, 2, **options))


def test_experts_are_shared_and_gates_and_towers_are_not():
    masks = shared_entries(network_of(MMoE, num_experts=3, expert_units=[4, 2]), COLUMNS)
    assert masks["model.weight"][:, :12].all()  # the experts' columns
    assert not masks["model.weight"][:, 12:].any()  # the gates' columns
    for name, mask in masks.items():
        if name.startswith(("model.experts", "model.towers")):
            assert mask.all() if name.startswith("model.experts") else not mask.any(), name


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_what_other_methods_share(activation: str):
    masks = shared_entries(network_of(OMoE, num_experts=3, activation=activation), COLUMNS)
    assert masks["model.weight"].all()  # with the gate
    assert not any(mask.any() for mask in shared_entries(network_of(SingleTask), COLUMNS).values())
    masks = shared_entries(network_of(CrossStitch, activation=activation), COLUMNS)
    assert sum(mask.any().item() for mask in masks.values()) >= 3
    masks = shared_entries(network_of(PLE, num_levels=2, activation=activation), COLUMNS)
    assert any(mask.any() and not mask.all() for mask in masks.values())
    members = {"member": lambda **sizes: MMoE(**sizes, num_experts=3), "size": 2}
    masks = shared_entries(network_of(Ensemble, **members), COLUMNS)
    assert any(mask.any() and not mask.all() for mask in masks.values())


def rows(count: int = 80) -> tuple[Tensor, ...]:
    """Levels, numbers, labels, and which of them are known."""
    random = np.random.default_rng(0)
    labels = torch.tensor(random.integers(0, 2, (count, 2))).float()
    known = torch.tensor(random.random((count, 2)) < 0.7)
    numbers = torch.tensor(random.random((count, 1))).float()
    return torch.tensor(random.integers(0, 3, (count, 1))), numbers, labels, known


@pytest.mark.parametrize("method", [MMoE, PLE, CrossStitch, SingleTask])
def test_shared_entries_get_the_vector_and_others_their_tasks_gradient(method: type[nn.Module]):
    """CAGrad with c=0 is the mean of the gradients."""
    network = network_of(method)
    objective = Objective(network, TASKS, by_task=True)
    balancer = Balancer([CAGrad(2, c=0.0)], network, COLUMNS, ["one", "two"])
    balancer.start(dict(objective.named_parameters()), None)
    output = objective(*rows())
    named = {name: p for name, p in network.named_parameters() if p.numel()}
    each = [
        torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for loss in output.losses
    ]
    loss = balancer.loss(output.losses, output.penalty)
    torch.testing.assert_close(loss, output.losses.sum())
    balancer.backward(0.5)
    for (name, parameter), first, second in zip(named.items(), *each, strict=True):
        total = sum(torch.zeros_like(parameter) if g is None else g for g in (first, second))
        expected = torch.where(balancer.masks[name], total / 2, total)
        torch.testing.assert_close(parameter.grad, expected / 2, atol=1e-6, rtol=1e-4)
    assert objective.eval()(*rows()).loss.ndim == 0


def test_gradients_of_tables_keep_their_rows():
    """A table with sparse gradients gets what a dense one gets."""
    index, found = torch.tensor([3, 1, 3]), []
    for sparse in (True, False):
        torch.manual_seed(0)
        table, last = nn.Embedding(5, 2, sparse=sparse), nn.Linear(2, 2)
        named = {"last.weight": last.weight, "table.weight": table.weight, "last.bias": last.bias}
        gradients = TaskGradients(named, {}, 1, ["table.weight"] if sparse else [])
        for _ in range(2):  # gradients of two batches add up
            jacobian = gradients.jacobian(last(table(index)).square().sum(0).unbind())
            gradients.accumulate(jacobian.sum(0))
        assert table.weight.grad.is_sparse is sparse
        found.append([p.grad.to_dense() if p.grad.is_sparse else p.grad for p in named.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_means_leave_missing_values_out():
    mean = RunningMean()
    assert mean.take() is None
    mean.add(torch.tensor([1.0, torch.nan]))
    mean.add(torch.tensor([3.0, torch.nan]))
    torch.testing.assert_close(mean.take(), torch.tensor([2.0, torch.nan]), equal_nan=True)
    assert mean.take() is None


def test_a_run_folder_may_build_the_strategies():
    for name in ("strategies.Constant", "scalarization.FAMO", "aggregation.PCGrad"):
        check_targets({"_target_": f"mmoe.balancing.{name}"})
    assert not Constant(2).acts


QUICK = ["--config-dir=conf", "data=mine", "logger=none", "trainer.max_epochs=1", "data.batch_size=16"]
SGD = "learner.optimizer={_target_: torch.optim.SGD, _partial_: true, lr: 1.0}"


def history(folder: str = "run") -> pd.DataFrame:
    return pd.read_csv(f"{folder}/history.csv")


def metrics(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "metrics.json").read_text())


def weights(folder: str) -> Tensor:
    """The weights of the model after the last step."""
    state = torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.double().flatten() for name, value in state.items() if ".network.model." in name])


@pytest.mark.parametrize("balance", STRATEGIES)
def test_every_strategy_trains(train: Command, balance: str):
    """With labels that are unknown in some rows, and in all rows of some batches."""
    balanced_table()
    options = [*QUICK, "data.batch_size=4", "+trainer.limit_train_batches=12", "hydra.run.dir=run"]
    done = train(*options, f"balance={balance}")
    assert done.code == 0, done.err
    assert done.err == ""
    found = history().filter(like="balance/")
    if balance == "constant":
        assert not len(found.columns)
    else:
        assert np.isfinite(found).all(axis=None)
        assert {"balance/weight/click", "balance/weight/buy"} <= set(found)
        assert (found.filter(like="cosine").abs() <= 1 + 1e-9).all(axis=None)
    assert weights("run").isfinite().all()


def test_the_tower_of_a_click_is_shared_with_the_conversion():
    """The loss of a conversion is that of a product with the probability of a click."""
    for method in (ESMM, partial(Ensemble, member=ESMM, size=2)):
        options = {"parents": [-1, 0]} if method is ESMM else {"member": partial(ESMM, parents=[-1, 0])}
        masks = shared_entries(network_of(method, **options), COLUMNS)
        (mask,) = (mask for name, mask in masks.items() if name.endswith("towers.2.bias"))  # [..., T, 1]
        assert mask[..., 0, :].all()
        assert not mask[..., 1, :].any()


@pytest.mark.parametrize(
    ("balance", "what"),
    [("balance=pcgrad", "balance: PCGrad"), ("balance.measure_every=1", "balance.measure_every")],
)
def test_half_precision_that_scales_losses_is_refused(
    train: Command, monkeypatch: pytest.MonkeyPatch, balance: str, what: str
):
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # a CPU would take bf16-mixed instead
    balanced_table()
    done = train(*QUICK, balance)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{what} cannot scale losses" in done.err


def test_gradients_divided_over_processes_are_refused(train: Command, monkeypatch: pytest.MonkeyPatch):
    # FSDP and DeepSpeed need GPUs, so the strategy of one device stands for them.
    monkeypatch.setattr("mmoe.balancing.compatibility.SingleDeviceStrategy", DDPStrategy)
    balanced_table()
    done = train(*QUICK, "balance=pcgrad")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert (
        "balance: PCGrad needs all gradients in one process; trainer.strategy=SingleDeviceStrategy"
        in done.err
    )


def test_cosines_and_conflicts_are_means_over_steps():
    """Steps with one gradient alone have no cosine, and do not count."""
    balancer = Balancer([CAGrad(2)], network_of(MMoE), COLUMNS, ["one", "two"])
    right, up, left = [1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]
    for first, second in ((right, left), (right, up), (right, right), (right, [0.0, 0.0])):
        balancer._compare(torch.tensor([[first, second]]))
    balancer.means["weights"].add(torch.ones(1, 2))
    found = balancer.take_statistics()
    assert found["balance/cosine/one_two"].item() == pytest.approx((1 - math.sqrt(0.5)) / 3)
    assert found["balance/conflicting"].item() == pytest.approx(1 / 3)


def test_a_task_without_a_loss_is_refused(train: Command):
    balanced_table()
    done = train(*QUICK, "balance=stch", "objective.task_weights={buy: 0}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "objective.task_weights.buy=0: must be above 0" in done.err


@pytest.mark.parametrize("balance", ["pcgrad", "uncertainty"])
@pytest.mark.parametrize("model", MODELS)
def test_every_method_is_balanced(train: Command, model: str, balance: str):
    balanced_table()
    options = [*QUICK, "+trainer.limit_train_batches=3", "+trainer.limit_test_batches=0", "hydra.run.dir=run"]
    options += ["data.tasks.buy.where=clicked"] if model == "esmm" else []
    done = train(*options, f"model={model}", f"balance={balance}")
    assert done.code == 0, done.err
    shares_nothing = balance == "pcgrad" and model in ("single_task", "l2_constrained")
    assert ("share no weights" in done.out + done.err) is shares_nothing
    assert "balance/weight/buy" in history()


def test_measuring_changes_nothing_and_is_drawn(train: Command):
    """Measuring the cosines leaves the weights as they are, but for the order of additions."""
    balanced_table()
    options = [*QUICK, "trainer.max_epochs=2", "figures=true", "card=true"]
    assert train(*options, "hydra.run.dir=plain").code == 0
    assert train(*options, "balance.measure_every=2", "hydra.run.dir=run").code == 0
    torch.testing.assert_close(weights("run"), weights("plain"), atol=1e-4, rtol=0)
    found = history().filter(like="balance/")
    assert set(found) == {
        "balance/weight/click", "balance/weight/buy", "balance/cosine/click_buy", "balance/conflicting"
    }  # fmt: skip
    assert found["balance/conflicting"].between(0, 1).all()
    assert Path("run/figures/balance.png").stat().st_size > 5000
    card = Path("run/card.md").read_text()
    assert "| balancing | `mmoe.balancing.strategies.Constant` |\n| balance.measure_every | `2` |\n" in card
    assert "cosines of gradients and how often they conflict." in card
    table = analysis.balance("run")
    assert list(table)[:4] == ["seed", "epoch", "step", "weight/click"]
    assert (table[["weight/click", "weight/buy"]] == 1).all(axis=None)
    with pytest.raises(UserError, match=r"has no balanced tasks; train with balance=\.\.\."):
        analysis.balance("plain")
    assert not Path("plain/figures/balance.png").exists()


@pytest.mark.parametrize("balance", ["pcgrad", "uncertainty", "famo", "nash_mtl"])
def test_replicas_train_as_they_do_alone(train: Command, balance: str):
    balanced_table()
    options = [*QUICK, f"balance={balance}", "+trainer.limit_train_batches=6", "seed=3"]
    assert train(*options, "replicas=2", "hydra.run.dir=together").code == 0
    assert train(*options[:-1], "seed=4", "hydra.run.dir=run").code == 0
    together = history("together")
    for name, value in history().iloc[0].items():
        if name.startswith("balance/") or name.endswith("log_loss"):
            assert together[name][1] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert together["balance/weight/buy"][0] != together["balance/weight/buy"][1]


def test_a_penalty_is_added_to_the_combined_gradient():
    """CAGrad with c=0 halves the sum of the tasks' gradients, but not the gradient of the penalty."""
    network = network_of(L2Constrained)
    objective = Objective(network, TASKS, by_task=True)
    balancer = Balancer([CAGrad(2, c=0.0)], network, COLUMNS, ["one", "two"])
    balancer.masks = {name: torch.ones_like(mask) for name, mask in balancer.masks.items()}  # all are shared
    balancer.start(dict(objective.named_parameters()), None)
    output = objective(*rows())
    assert output.penalty > 0
    expected = torch.autograd.grad(
        output.losses.sum() / 2 + output.penalty, list(network.parameters()), retain_graph=True
    )
    balancer.loss(output.losses, output.penalty)
    balancer.backward(1.0)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_learned_weights_get_the_gradients_of_all_accumulated_batches(train: Command):
    """With SGD, uncertainty weighting of two batches equals that of one batch of twice the size."""
    balanced_table(missing=False)
    options = [*QUICK, "balance=uncertainty", SGD, "learner.optimizer.lr=0.1"]
    steps = ["+trainer.limit_train_batches=8", "+trainer.accumulate_grad_batches=2", "data.batch_size=8"]
    assert train(*options, *steps, "hydra.run.dir=two").code == 0
    assert train(*options, "+trainer.limit_train_batches=4", "hydra.run.dir=one").code == 0
    torch.testing.assert_close(weights("two"), weights("one"), atol=1e-5, rtol=0)
    names = ["balance/weight/click", "balance/weight/buy"]
    assert history("two")[names].iloc[-1].tolist() == pytest.approx(
        history("one")[names].iloc[-1].tolist(), rel=0.02
    )


def test_accumulated_batches_add_up(train: Command):
    """The mean gradient, CAGrad with c=0, of two batches is that of one batch of twice the size."""
    balanced_table(missing=False)
    options = [*QUICK, "balance=cagrad", "balance.c=0", SGD, "learner.optimizer.lr=0.1"]
    steps = ["+trainer.limit_train_batches=8", "+trainer.accumulate_grad_batches=2", "data.batch_size=8"]
    assert train(*options, *steps, "hydra.run.dir=two").code == 0
    assert train(*options, "+trainer.limit_train_batches=4", "hydra.run.dir=one").code == 0
    assert metrics("two")["steps"] == metrics("one")["steps"] == 4
    torch.testing.assert_close(weights("two"), weights("one"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("balance", ["mgda", "uncertainty", "famo"])
def test_balanced_gradients_are_clipped(train: Command, balance: str):
    """A step of SGD with rate 1 is as long as its gradient."""
    balanced_table()
    options = [*QUICK, f"balance={balance}", SGD, "+trainer.limit_train_batches=1"]
    clip = "+trainer.gradient_clip_val=1e-3"
    assert train(*options, clip, "learner.optimizer.lr=0", "hydra.run.dir=start").code == 0
    assert train(*options, clip, "hydra.run.dir=clipped").code == 0
    assert train(*options, "hydra.run.dir=free").code == 0
    assert (weights("clipped") - weights("start")).norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert (weights("free") - weights("start")).norm() > 1e-2


HASHED = "data.columns.city={kind: categorical, encoding: hash, buckets: 5000, size: 4}"


@pytest.mark.parametrize(("balance", "model"), [("pcgrad", "l2_constrained"), ("famo", "mmoe")])
def test_large_tables_keep_sparse_gradients(train: Command, balance: str, model: str):
    balanced_table()
    options = [*QUICK, HASHED, "+trainer.gradient_clip_val=1", "hydra.run.dir=run"]
    done = train(*options, f"balance={balance}", f"model={model}")
    assert done.code == 0, done.err
    assert weights("run").isfinite().all()


@pytest.mark.parametrize("balance", ["constant", "famo"])
def test_gradients_are_clipped_by_value(train: Command, balance: str):
    """A step of SGD with rate 1 changes no weight by more than the limit, also with a sparse gradient."""
    balanced_table()
    clip = ["+trainer.gradient_clip_val=1e-3", "+trainer.gradient_clip_algorithm=value"]
    options = [*QUICK, HASHED, SGD, *clip, f"balance={balance}", "+trainer.limit_train_batches=1"]
    assert train(*options, "learner.optimizer.lr=0", "hydra.run.dir=start").code == 0
    done = train(*options, "hydra.run.dir=clipped")
    assert done.code == 0, done.err
    assert (weights("clipped") - weights("start")).abs().max().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.slow
def test_weighed_losses_can_be_compiled(train: Command):
    balanced_table()
    options = [*QUICK, "balance=famo", "+trainer.limit_train_batches=4"]
    assert train(*options, "hydra.run.dir=plain").code == 0
    assert train(*options, "compile=true", "hydra.run.dir=compiled").code == 0
    torch.testing.assert_close(weights("compiled"), weights("plain"), atol=1e-4, rtol=0)


def test_bfloat16(train: Command):
    balanced_table()
    for balance in ("mgda", "famo"):
        options = [f"balance={balance}", "trainer.precision=bf16-mixed", "+trainer.limit_train_batches=3"]
        assert train(*QUICK, *options, f"hydra.run.dir={balance}").code == 0
        assert weights(balance).isfinite().all()


@pytest.mark.parametrize(
    ("balance", "name"), [("balance=mgda", "MGDA"), ("balance.measure_every=1", "Constant")]
)
def test_one_task_is_warned_of(train: Command, balance: str, name: str):
    balanced_table()
    options = [*QUICK, "data.tasks.buy=null", balance, "+trainer.limit_train_batches=2"]
    done = train(*options, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert f"balance: {name} has no effect, because there is one task" in done.out + done.err
    assert not len(history().filter(like="balance/").columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["balance=stch", "balance.mu=0"], "balance.mu=0: must be a finite number of at least 1e-06"),
        (["balance=famo", "balance.lr=-1"], "balance.lr=-1: must be a finite number of at least 0"),
        (["balance=gradvac", "balance.beta=2"], "balance.beta=2: must be at most 1"),
        (
            ["balance=aligned_mtl", "balance.scale_mode=max"],
            "balance.scale_mode=max: must be one of min",
        ),
        (["balance.measure_every=-1"], "balance.measure_every=-1: must be an integer of at least 0"),
        (
            ["balance=pcgrad", HASHED, "trainer=ddp_cpu"],
            "balance: PCGrad cannot average the sparse gradients",
        ),
        (["balance=pcgrad", "+balance.c=1"], "balance: got an unexpected keyword argument 'c'"),
        (
            ["balance=pcgrad", "compile=true"],
            "balance: PCGrad needs the gradient",
        ),
        (
            ["balance.measure_every=1", "compile=true"],
            "balance.measure_every needs the gradient",
        ),
        (
            ["balance=famo", "+data.tasks.buy.kind=count"],
            "balance: FAMO needs losses above 0",
        ),
        (
            ["balance=uncertainty", "+data.tasks.buy.kind=count"],
            "balance: Uncertainty needs losses above 0",
        ),
    ],
)
def test_bad_input_is_one_line(train: Command, options: list[str], message: str):
    balanced_table()
    done = train(*QUICK, *options)
    assert done.code == 2, done.err
    assert f"error: {message}" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(Path().glob("runs/*/*"))


@pytest.mark.parametrize(
    ("balance", "name", "missing"),
    [
        ("uncertainty", "Uncertainty", "torchjd.scalarization"),
        ("pcgrad", "PCGrad", "torchjd.aggregation"),
    ],
)
def test_without_torchjd_one_line_names_the_extra(
    train: Command, balance: str, name: str, missing: str, monkeypatch: pytest.MonkeyPatch
):
    balanced_table()
    monkeypatch.setitem(sys.modules, missing, None)
    done = train(*QUICK, f"balance={balance}")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert f"balance: {name} needs {missing}: pip install 'mmoe[balance]'" in done.err


def test_constant_weights_need_no_torchjd(train: Command, monkeypatch: pytest.MonkeyPatch):
    balanced_table()
    for name in ("torchjd", "torchjd.scalarization", "torchjd.aggregation"):
        monkeypatch.setitem(sys.modules, name, None)
    done = train(*QUICK, "balance.measure_every=1", "+trainer.limit_train_batches=2", "hydra.run.dir=run")
    assert done.code == 0, done.err


def test_without_a_solver_one_line_names_the_extra(train: Command, monkeypatch: pytest.MonkeyPatch):
    balanced_table()
    from torchjd import _mixins

    monkeypatch.setattr(_mixins, "find_spec", lambda name: None)
    done = train(*QUICK, "balance=nash_mtl")
    assert done.code == 2
    assert "error: balance: NashMTL needs a solver: pip install 'mmoe[balance]'\n" in done.err
