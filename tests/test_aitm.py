"""AITM: a funnel of binary tasks, here views that become clicks that become purchases."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command, assert_equal_with_gradients, layer_by_layer
from omegaconf import OmegaConf
from torch import Tensor

from mmoe import AITM, Binary, load
from mmoe.export import export


def looped(model: AITM, x: Tensor) -> tuple[Tensor]:
    """Section 3 of the paper, with the attention of one candidate at a time."""
    bottom = layer_by_layer(model.bottom, 0, x)
    logits, steps = [], []
    for t in range(model.num_tasks):
        step = tower = layer_by_layer(model.towers, t, bottom)
        if t:
            transfer, width = model.transfers[t - 1], tower.shape[1]
            weights, values = [], []
            for u in (transfer.information(steps[-1]), tower):
                projected = transfer.projections(u)
                value, query, key = (projected[:, i * width : (i + 1) * width] for i in range(3))
                weights.append((query * key).sum(1) / width**0.5)
                values.append(value)
            shares = torch.stack(weights, 1).softmax(1)
            step = shares[:, :1] * values[0] + shares[:, 1:] * values[1]
        steps.append(step)
        weight, bias = model.heads.by_layer()
        logits.append(step @ weight[t] + bias[t])
    return (torch.cat(logits, 1),)


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_equals_a_plain_loop_with_gradients(num_tasks: int):
    torch.manual_seed(0)
    model = AITM(10, num_tasks, [7, 6], [5, 4], activation="gelu")
    assert_equal_with_gradients(model, lambda x: looped(model, x))


def test_steps_set_the_order_of_the_funnel_but_not_of_the_outputs():
    torch.manual_seed(0)
    plain, x = AITM(10, 3), torch.randn(6, 10)
    torch.manual_seed(0)
    names = ["buy", "view", "click"]
    model = AITM(10, 3, steps=["view", "click", "buy"], task_names=names)
    assert torch.equal(model(x).logits, plain(x).logits[:, [2, 0, 1]])
    assert torch.equal(model.forward_with_penalty(x)[1], plain.forward_with_penalty(x)[1])


def test_only_earlier_steps_change_a_step():
    torch.manual_seed(0)
    model, x = AITM(10, 3, activation="gelu"), torch.randn(6, 10)
    logits = model(x).logits
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), model.towers[0].weight)
    width = gradient.shape[1] // 3
    assert [bool(gradient[:, t * width :][:, :width].any()) for t in range(3)] == [True, True, False]


def test_the_penalty_is_the_excess_over_the_step_before():
    torch.manual_seed(0)
    model, x = AITM(10, 3, calibration=0.5), 3 * torch.randn(8, 10)
    output, penalty = model.forward_with_penalty(x)
    p = output.logits.detach().sigmoid()
    excess = [max(float(p[i, t + 1] - p[i, t]), 0.0) for i in range(8) for t in range(2)]
    assert penalty.item() == pytest.approx(0.5 * sum(excess) / 8, rel=1e-5)
    assert penalty > 0
    assert not AITM(10, 3, calibration=0).has_penalty
    assert not AITM(10, 1).has_penalty


def test_arguments():
    for steps in (["0"], ["0", "2"], ["0", "0"]):
        with pytest.raises(ValueError, match=r"^steps=.*: must hold each of the tasks 0, 1 once"):
            AITM(10, 2, steps=steps)
    with pytest.raises(ValueError, match=r"^tower_units=\[\]: must have the width of at least one layer"):
        AITM(10, 2, tower_units=[])


def test_where_may_name_a_column_that_is_not_a_task():
    tasks = [Binary("clicked", name="click", where="shown"), Binary("bought", name="buy")]
    assert AITM.task_arguments(tasks) == {"task_names": ["click", "buy"]}


def write_funnel(where: bool = False) -> None:
    """300 rows and their configuration, `data=funnel`. Half of the rows are clicked, some bought."""
    draw = np.random.default_rng(0)
    number = draw.normal(size=300)
    clicked = number + draw.logistic(size=300) > 0
    bought = clicked & (number + draw.logistic(size=300) > 0)
    rows = {"number": number, "clicked": clicked.astype(int), "bought": bought.astype(int), "spend": number}
    pd.DataFrame(rows).to_csv("funnel.csv", index=False)
    buy = {"column": "bought"} | ({"where": "clicked"} if where else {})
    data = {
        "_target_": "mmoe.data.table_data.TableData", "train": "funnel.csv", "validation": {"fraction": 0.3},
        "test": {"fraction": 0.3}, "columns": {"number": "numeric"},
        "tasks": {"click": {"column": "clicked"}, "buy": buy}, "main_task": "buy", "num_bins": 4,
        "batch_size": 64,
    }  # fmt: skip
    Path("conf/data").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(data), "conf/data/funnel.yaml")


QUICK = ["--config-dir", "conf", "data=funnel", "trainer.max_epochs=1", "logger=none"]
AITM_OPTIONS = ["model=aitm", "model.steps=[click,buy]"]


def test_it_serves_every_command(train: Command, command):
    write_funnel()
    assert train(*QUICK, *AITM_OPTIONS, "learner.scheduler=null", "hydra.run.dir=run").code == 0
    assert train("resume=run", "trainer.max_epochs=2").code == 0
    assert command("evaluate")("run=run", "resamples=0").code == 0
    assert command("predict")("run=run", "input=funnel.csv", "output=scores.csv").code == 0
    assert export(load("run"))[1] < 1e-5
    assert train(*QUICK, *AITM_OPTIONS, "replicas=2", "hydra.run.dir=replicas").code == 0
    ensemble = ["model=ensemble", "model@model.member=aitm", "model.size=2"]
    steps = ["model.member.steps=[click,buy]", "hydra.run.dir=ensemble"]
    assert train(*QUICK, *ensemble, *steps, "model.member.calibration=0").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["+data.tasks.spend={column: spend, kind: regression}"],
            "data.tasks.spend.kind=regression: must be",
        ),
        (["+data.tasks.buy.where=clicked"], "data.tasks.buy.where=clicked: must be left out for model=aitm"),
        (["model.steps=[click]"], "model.steps=['click']: must hold each of the tasks buy, click once"),
    ],
)
def test_wrong_tasks_give_one_line(train: Command, options: list[str], message: str):
    write_funnel()
    done = train(*QUICK, *AITM_OPTIONS, *options)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
