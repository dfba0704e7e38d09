"""Optimizers and schedules that people bring: by step and by epoch, with closures, for matrices alone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import config
from test_learner import SCHEMA, TASKS, batch
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from mmoe import Learner, MMoE, Network, Objective
from mmoe.build import build
from mmoe.errors import UserError
from mmoe.models.inputs import Inputs
from mmoe.models.layers import StackedLinear
from mmoe.models.replicas import Replicas
from mmoe.training.optimizers import MuonAndAdamW, build_optimizer
from mmoe.training.preparation import build_learner

STEPS = 4  # steps in an epoch


class Rates(pl.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: object, optimizer: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[-1]["lr"])


def learner(optimizer: object = None, **options: object) -> Learner:
    torch.manual_seed(0)
    inputs = Inputs(SCHEMA)
    objective = Objective(Network(inputs, MMoE(inputs.num_outputs, 2)), TASKS)
    return Learner(objective, optimizer or partial(torch.optim.SGD, lr=0.1), **options)


def fit(ours: Learner, epochs: int = 3, steps: int = -1) -> list[float]:
    """Train, and give the learning rate of each step."""
    torch.manual_seed(1)
    batches = [batch(16) for _ in range(STEPS)]
    rates = Rates()
    trainer = pl.Trainer(
        max_epochs=epochs, max_steps=steps, accelerator="cpu", logger=False, callbacks=[rates],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(ours, DataLoader(batches, batch_size=None), DataLoader([batch(40)], batch_size=None))
    return rates.rates


def by_hand(schedule: Callable, steps: int, every: int = 1) -> list[float]:
    """The rates of a plain loop that steps the schedule once after `every` optimizer steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, rates = schedule(optimizer), []
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0:
            scheduler.step()
    return rates


ONE_CYCLE = partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=3 * STEPS)
CYCLIC = partial(lr_scheduler.CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=3)
COSINE = partial(lr_scheduler.CosineAnnealingLR, T_max=3 * STEPS)
WARM_UP = partial(lr_scheduler.LinearLR, start_factor=0.01, total_iters=5)
BY_EPOCH = partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)


@pytest.mark.parametrize(
    ("schedule", "options", "every"),
    [
        (ONE_CYCLE, {}, 1),
        (CYCLIC, {}, 1),
        (COSINE, {"interval": "step"}, 1),
        (WARM_UP, {"interval": "step"}, 1),
        (WARM_UP, {"interval": "step", "frequency": 2}, 2),
        (BY_EPOCH, {}, STEPS),
        (BY_EPOCH, {"interval": "epoch", "frequency": 2}, 2 * STEPS),
        (ONE_CYCLE, {"interval": "epoch"}, STEPS),
    ],
)
def test_rates_are_those_of_a_plain_loop(schedule: Callable, options: dict, every: int):
    assert fit(learner(scheduler=schedule, **options)) == pytest.approx(by_hand(schedule, 3 * STEPS, every))


def test_total_steps_stands_for_the_steps_of_the_training():
    schedule = partial(lr_scheduler.CosineAnnealingLR, T_max="total_steps")
    assert fit(learner(scheduler=schedule, interval="step")) == pytest.approx(by_hand(COSINE, 3 * STEPS))
    one_cycle = partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps="total_steps")
    assert fit(learner(scheduler=one_cycle)) == pytest.approx(by_hand(ONE_CYCLE, 3 * STEPS))


def test_a_schedule_that_is_too_short_is_refused_before_training():
    with pytest.raises(
        UserError, match="total_steps=11: must be at least 12, because the training advances it that"
    ):
        fit(learner(scheduler=partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=11)))


def test_the_steps_between_two_advances_are_counted_in_each_epoch():
    one_cycle = partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=3)  # 4 steps an epoch: 1 advance
    assert len(set(fit(learner(scheduler=one_cycle, interval="step", frequency=3)))) == 4
    with pytest.raises(UserError, match="must be at least 3"):
        fit(learner(scheduler=partial(one_cycle, total_steps=2), interval="step", frequency=3))


def test_one_cycle_by_epoch_must_reach_the_last_step():
    """6 steps are one and a half epochs of 4, so the schedule advances once."""
    one_cycle = partial(lr_scheduler.OneCycleLR, max_lr=1.0)
    assert len(fit(learner(scheduler=partial(one_cycle, total_steps=2), interval="epoch"), -1, 6)) == 6
    with pytest.raises(UserError, match="total_steps=2: must be at least 3, because"):
        fit(learner(scheduler=partial(one_cycle, total_steps=2), interval="epoch"), -1, 12)
    with pytest.raises(UserError, match=r"OneCycleLR needs a trainer\.max_epochs or max_steps"):
        fit(learner(scheduler=partial(one_cycle, total_steps=2), interval="epoch"), -1)


def test_scaled_gradients_are_not_clipped_by_a_fused_optimizer(monkeypatch: pytest.MonkeyPatch):
    """Lightning would clip them before it unscales them."""
    given = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    free, clipping = pl.Trainer(**given), pl.Trainer(**given, gradient_clip_val=1.0)
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # a CPU would take bf16-mixed instead
    for trainer, fused in ((free, True), (clipping, False)):
        adam = learner(partial(torch.optim.Adam))
        adam.trainer = trainer
        assert adam.configure_optimizers()["optimizer"].defaults["fused"] is fused
    fused_adam = learner(partial(torch.optim.Adam, fused=True))
    fused_adam.check_optimizer(free)
    with pytest.raises(UserError, match=r"^learner.optimizer.fused=true: cannot be combined"):
        fused_adam.check_optimizer(clipping)


@pytest.mark.parametrize(("monitor", "mode"), [("val/one/auroc", "max"), ("val/two/log_loss", "min")])
def test_a_plateau_lowers_the_rate_by_what_is_monitored(monitor: str, mode: str):
    plateau = partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1)
    ours = learner(partial(torch.optim.SGD, lr=0.0), scheduler=plateau, monitor=monitor)
    for group in ours.configure_optimizers()["optimizer"].param_groups:
        assert group["lr"] == 0
    ours = learner(partial(torch.optim.SGD, lr=1e-30), scheduler=plateau, monitor=monitor)
    rates = fit(ours, epochs=4)  # nothing improves on the first epoch
    assert rates[::STEPS] == pytest.approx([1e-30, 1e-30, 1e-31, 1e-32])
    wrong = {"max": "min", "min": "max"}[mode]
    with pytest.raises(UserError, match=f"scheduler.mode: must be {mode} for {monitor}"):
        learner(scheduler=partial(plateau, mode=wrong), monitor=monitor).check_optimizer()
    with pytest.raises(UserError, match="monitor=val/three/auroc: must be one of val/one/auroc"):
        learner(scheduler=plateau, monitor="val/three/auroc").check_optimizer()


def test_replicas_cannot_have_a_plateau_schedule():
    plateau = "{_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}"
    c = config("experiment=smoke", "replicas=2", f"learner.scheduler={plateau}")
    with pytest.raises(UserError, match=r"^learner.scheduler: ReduceLROnPlateau follows one metric"):
        build_learner(c, build(c, "data").schema)


def test_lbfgs_trains():
    """Its closure is called many times a step: the batch counts once."""
    ours = learner(partial(torch.optim.LBFGS, lr=0.1, max_iter=5))
    first = ours.objective(*batch(40)).loss.item()
    fit(ours, epochs=3)
    torch.manual_seed(1)
    assert ours.objective(*batch(40)).loss.item() < first
    assert ours.results.num_rows["train"] == STEPS * 16


@pytest.mark.parametrize("optimizer", [torch.optim.Muon, MuonAndAdamW])
def test_muon_trains_matrices_and_adamw_the_rest(optimizer: type):
    ours = learner(partial(optimizer, lr=0.02, weight_decay=0.0), scheduler=BY_EPOCH)
    made = ours.configure_optimizers()["optimizer"]
    matrices, others = (part.param_groups[0]["params"] for part in made.parts)
    assert all(p.ndim == 2 for p in matrices)
    assert len(matrices) + len(others) == len(list(ours.parameters()))
    before = [p.clone() for p in ours.parameters()]
    assert fit(ours)[::STEPS] == pytest.approx([0.02, 0.01, 0.005])
    assert all(not torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


def test_the_state_of_muon_and_adamw_comes_back():
    def make() -> tuple[torch.nn.Module, MuonAndAdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        return layer, MuonAndAdamW(layer.named_parameters(), lr=0.1)

    def step(layer: torch.nn.Module, optimizer: MuonAndAdamW) -> None:
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    whole, again = make(), make()
    step(*whole)
    step(*again)
    stored = again[1].state_dict()
    layer, optimizer = make()
    layer.load_state_dict(again[0].state_dict())
    optimizer.load_state_dict(stored)
    for _ in range(3):
        step(*whole)
        step(layer, optimizer)
    for a, b in zip(whole[0].parameters(), layer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_by_the_command_line_and_going_on(train: Callable):
    options = [
        "experiment=smoke", "logger=none", "learner.interval=step",
        "learner.optimizer._target_=torch.optim.Muon",
        "learner.scheduler={_target_: torch.optim.lr_scheduler.CosineAnnealingLR, _partial_: true,"
        " T_max: total_steps}",
        "+trainer.limit_train_batches=5", "trainer.max_epochs=2",
    ]  # fmt: skip
    assert train(*options, "hydra.run.dir=whole").code == 0
    stored = torch.load("whole/checkpoints/last.ckpt", weights_only=True)
    assert stored["lr_schedulers"][0]["_last_lr"] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert train(*options, "hydra.run.dir=again").code == 0
    Path("again/metrics.json").unlink()
    assert train("resume=again").code == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.interval=batch", "learner.interval=batch: must be step or epoch"),
        ("learner.frequency=0", "learner.frequency=0: must be an integer of at least 1"),
        ("learner.optimizer.lr=-1", "learner.optimizer: Invalid learning rate: -1"),
        ("+learner.optimizer.speed=1", "learner.optimizer: "),
        (
            "learner.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true}",
            "learner.scheduler: ",
        ),
    ],
)
def test_mistakes(train: Callable, override: str, message: str):
    result = train("experiment=smoke", override)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.yaml"))


PLATEAU = "learner.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.limit_val_batches=0"], "learner.scheduler: ReduceLROnPlateau needs"),
        (["+trainer.check_val_every_n_epoch=2"], "learner.scheduler: ReduceLROnPlateau needs"),
        (["learner.interval=step"], "learner.interval=step: ReduceLROnPlateau follows validations"),
    ],
)
def test_a_plateau_without_validations_is_refused(train: Callable, overrides: list[str], message: str):
    result = train("experiment=smoke", "logger=none", PLATEAU, *overrides)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")


class MyPlateau(lr_scheduler.ReduceLROnPlateau):
    """A user's own."""


def test_a_plateau_of_a_user_follows_the_right_direction():
    ours = learner(scheduler=partial(MyPlateau, patience=0))
    assert ours.configure_optimizers()["lr_scheduler"]["scheduler"].mode == "max"


def test_a_run_with_a_schedule_for_its_length_is_not_trained_longer(train: Callable):
    one_cycle = "_target_: torch.optim.lr_scheduler.OneCycleLR, _partial_: true"
    schedule = f"{{{one_cycle}, max_lr: 0.01, total_steps: 5}}"
    options = ["experiment=smoke", "logger=none", "+trainer.limit_train_batches=5", "trainer.max_epochs=1"]
    assert train(*options, f"learner.scheduler={schedule}", "hydra.run.dir=run").code == 0
    before = Path("run/metrics.json").read_bytes()
    result = train("resume=run", "trainer.max_epochs=2")
    assert result.code == 2
    assert "its schedule torch.optim.lr_scheduler.OneCycleLR ends with the training" in result.err
    assert Path("run/metrics.json").read_bytes() == before


def test_muon_trains_no_bias_and_no_copies():
    layer = StackedLinear(2, 4, 3)  # its bias is [2, 3]
    module = torch.nn.Sequential(layer, torch.nn.Linear(3, 2))
    optimizer = build_optimizer(partial(torch.optim.Muon, lr=0.1), module)
    groups = [group["params"] for part in optimizer.parts for group in part.param_groups]
    shapes = [[tuple(parameter.shape) for parameter in group] for group in groups]
    assert shapes == [[(2, 3)], [(2, 4, 3), (2, 3), (2,)]]
    copies = Replicas([torch.nn.Linear(3, 2) for _ in range(2)])
    with pytest.raises(UserError, match=r"^learner.optimizer: Muon needs matrices, and replicas"):
        build_optimizer(partial(torch.optim.Muon, lr=0.1), copies)
