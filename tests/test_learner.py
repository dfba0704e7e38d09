from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from mmoe import Learner, MMoE, Network, Rows, Schema
from mmoe.data.schema import Categorical, Numeric
from mmoe.models.inputs import Inputs

SCHEMA = Schema((Categorical("a", ("x", "y")),), (Numeric("n", 0.0, 1.0, (0.0, 1.0)),), ())


def learner(**options: object) -> Learner:
    inputs = Inputs(SCHEMA)
    network = Network(inputs, MMoE(inputs.num_outputs, 2))
    return Learner(network, ["one", "two"], partial(torch.optim.Adam, lr=0.01), **options)


def batch(size: int = 6) -> Rows:
    return Rows(torch.randint(0, 3, (size, 1)), torch.rand(size, 1), torch.randint(0, 2, (size, 2)).float())


@pytest.mark.parametrize(("weights", "expected"), [(None, (1, 1)), ({"two": 0.25}, (1, 0.25))])
def test_the_loss_is_the_weighted_sum_over_tasks(weights, expected):
    ours, rows = learner(task_weights=weights), batch()
    logits = ours(rows.codes, rows.numerics).logits
    each = [binary_cross_entropy_with_logits(logits[:, t], rows.labels[:, t]) for t in range(2)]
    torch.testing.assert_close(ours._step(rows, "val"), expected[0] * each[0] + expected[1] * each[1])


def test_a_weight_of_zero_leaves_the_tower_alone():
    ours = learner(task_weights={"two": 0})
    ours._step(batch(), "val").backward()
    towers = ours.network.model.towers[0].weight.grad
    assert towers[0].abs().sum() > 0
    assert towers[1].abs().sum() == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"one": -1}, "task_weights.one=-1: must be a finite number of at least 0"),
        ({"one": float("nan")}, "task_weights.one=nan: must be"),
        ({"three": 1}, "task_weights.three: must be one of the tasks one, two"),
    ],
)
def test_task_weights_that_make_no_sense(weights, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        learner(task_weights=weights)


def test_optimizer_and_schedule_are_those_given():
    assert isinstance(learner().configure_optimizers()["optimizer"], torch.optim.Adam)
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    options = learner(scheduler=schedule).configure_optimizers()
    assert options["lr_scheduler"].optimizer is options["optimizer"]


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
