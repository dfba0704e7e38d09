from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from conftest import Command, config
from torch.utils.data import DataLoader

from mmoe import Batch, Learner, MMoE, Network, Objective, Schema, load
from mmoe.balancing.scalarization import Uncertainty
from mmoe.balancing.strategies import Strategy
from mmoe.build import build
from mmoe.data.columns import Categorical, Numeric
from mmoe.errors import ArgumentError
from mmoe.models.inputs import Inputs
from mmoe.tasks import Binary
from mmoe.training.preparation import build_learner, encode_before_steps
from mmoe.training.replica_learner import ReplicaLearner

SCHEMA = Schema((Categorical("a", ("x", "y")),), (Numeric("n", 0.0, 1.0, (0.0, 1.0)),), ())
TASKS = (Binary("c", ("x",), name="one"), Binary("c", ("x",), name="two"))


def learner(by_task: bool = False, **options: object) -> Learner:
    inputs = Inputs(SCHEMA)
    objective = Objective(Network(inputs, MMoE(inputs.num_outputs, 2)), TASKS, by_task=by_task)
    return Learner(objective, partial(torch.optim.Adam, lr=0.01), **options)


def batch(size: int = 6) -> Batch:
    return Batch(torch.randint(0, 3, (size, 1)), torch.rand(size, 1), torch.randint(0, 2, (size, 2)).float())


def test_optimizer_and_schedule_are_those_given():
    assert isinstance(learner().configure_optimizers()["optimizer"], torch.optim.Adam)
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    options = learner(scheduler=schedule).configure_optimizers()
    assert options["lr_scheduler"]["scheduler"].optimizer is options["optimizer"]
    assert options["lr_scheduler"]["interval"] == "epoch"


def test_the_schedule_steps_once_an_epoch():
    ours = learner(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ours, DataLoader([batch(), batch()], batch_size=None))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 / 8)


def test_it_trains_outside_the_command_line_on_any_batches():
    ours = learner()
    before = [p.clone() for p in ours.parameters()]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(
        ours, DataLoader([batch(1), batch(40)], batch_size=None), DataLoader([batch(40)], batch_size=None)
    )
    assert trainer.callback_metrics["val/one/auroc"].isfinite()
    assert all(not torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


def test_the_logged_loss_is_the_mean_over_the_rows_of_the_process():
    """The loss that is returned is also weighted by the rows of the process in the last batch."""
    ours, rows, logged = learner(), batch(6), {}
    ours._trainer = SimpleNamespace(
        world_size=2, is_last_batch=True, log_every_n_steps=1, global_step=0,
        strategy=SimpleNamespace(reduce=lambda rows, reduce_op: rows + 2),  # the other process has 2 rows
    )  # fmt: skip
    ours.log = lambda name, value, **_: logged.update({name: value.item()})
    expected = ours.objective(*rows).loss.item()
    assert ours.training_step(rows, 0).item() == pytest.approx(expected * 6 / 4)
    assert logged == {"train/loss": pytest.approx(expected)}


class FirstStep(Exception):
    pass


@pytest.mark.parametrize(
    ("overrides", "encoded"), [((), True), (("compile=true",), False), (("replicas=2",), True)]
)
def test_training_rows_are_encoded_once(overrides: tuple[str, ...], encoded: bool):
    composed = config("experiment=smoke", "data.batch_size=256", *overrides)
    data = build(composed, "data")
    ours = build_learner(composed, data.schema)
    trainer = pl.Trainer(
        max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    encode_before_steps(data, ours.network, trainer)

    def step(batch: Batch, batch_idx: int) -> None:
        assert (batch.sparse is not None) == encoded
        assert len(batch.labels) == 256
        raise FirstStep

    ours.training_step = step
    with pytest.raises(FirstStep):
        trainer.fit(ours, data)


@pytest.mark.parametrize("replicas", [1, 2])
def test_commands_encode_rows_before_the_steps(
    train: Command, command: Callable, monkeypatch: pytest.MonkeyPatch, replicas: int
):
    kind = Learner if replicas == 1 else ReplicaLearner
    seen, step = set(), kind._step

    def record(self: Learner, batch: Batch, stage: str, number: int) -> torch.Tensor:
        seen.add((stage, batch.sparse is not None))
        return step(self, batch, stage, number)

    monkeypatch.setattr(kind, "_step", record)
    quick = ["experiment=smoke", f"replicas={replicas}", "trainer.max_epochs=1"]
    done = train(*quick, "figures=false", "card=false", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert seen == {("train", True), ("val", True), ("test", True)}
    seen.clear()
    load("run").evaluate(resamples=0)
    assert seen == {("test", True)}
    seen.clear()
    done = command("tune")(*quick, "data.batch_size=256", "trials=1", "sampler=tpe", "folder=study")
    assert done.code == 0, done.err
    assert seen == {("train", True), ("val", True)}


@pytest.mark.parametrize(("by_task", "balance"), [(True, []), (False, [Uncertainty(2)])])
def test_tasks_are_separate_with_a_strategy_alone(by_task: bool, balance: list[Strategy]):
    with pytest.raises(
        ArgumentError, match=r"^objective.by_task: must be true with a balancing strategy, and"
    ):
        learner(by_task=by_task, balance=balance)
