"""ESMM: conversion over all rows as a product of probabilities."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Command
from test_aitm import QUICK, write_funnel
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from mmoe import ESMM, Batch, Binary, Ensemble, Multiclass, Network, Objective, Regression, Replicas, load
from mmoe.data.columns import Numeric
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.export import export
from mmoe.models.inputs import Inputs
from mmoe.models.shared_bottom import SharedBottom
from mmoe.tasks import Task
from mmoe.training.losses_over_processes import label_totals

CLICK = Binary("clicked", ("1",), name="click")
BUY = Binary("bought", ("1",), name="buy", where="clicked")
KEEP = Binary("kept", ("1",), name="keep", where="bought")
SPEND = Regression("spend", name="spend", where="bought")
# No click; a click and an unknown purchase; a click without a purchase; with one; an unknown click.
LABELS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
KNOWN = torch.tensor([[True, False], [True, False], [True, True], [True, True], [False, False]])


def test_the_network_is_a_shared_bottom():
    torch.manual_seed(0)
    ours = ESMM(10, 3)
    torch.manual_seed(0)
    theirs, x = SharedBottom(10, 3), torch.randn(4, 10)
    assert torch.equal(ours(x).logits, theirs(x).logits)


def looped_joint(logits: Tensor, parents: list[int]) -> Tensor:
    """The logits of the joint probabilities, one task at a time."""
    joint = []
    for t in range(len(parents)):
        p, task = torch.ones(len(logits), dtype=logits.dtype), t
        while task >= 0:
            p = p * logits[:, task].sigmoid()
            task = parents[task]
        joint.append(torch.logit(p))
    return torch.stack(joint, 1)


@pytest.mark.parametrize("parents", [[-1, 0], [1, -1], [-1, 0, 1], [2, -1, 1], [-1, 0, 0, -1], [-1]])
def test_joint_logits_equal_a_plain_loop_with_gradients(parents: list[int]):
    torch.manual_seed(0)
    model = ESMM(10, len(parents), parents=parents)
    logits = (2 * torch.randn(20, len(parents), dtype=torch.float64)).requires_grad_()
    ours, theirs = model.joint_logits(logits), looped_joint(logits, parents)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(joint.square().sum(), logits)[0] for joint in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_joint_logits_of_extreme_probabilities_are_finite():
    logits = torch.tensor([[80.0, 90.0], [-200.0, -200.0], [300.0, -300.0], [-300.0, 300.0], [0.0, 500.0]])
    logits.requires_grad_()
    joint = ESMM(10, 2).joint_logits(logits)
    torch.testing.assert_close(joint[1:, 1], torch.tensor([-400.0, -300.0, -300.0, 0.0]))
    joint.sum().backward()
    assert joint.isfinite().all()
    assert logits.grad.isfinite().all()
    half = ESMM(10, 2).joint_logits(logits.detach().half())
    assert half.dtype == torch.float16
    assert half.isfinite().all()


def test_a_row_without_a_click_is_a_known_negative():
    labels, known = ESMM(10, 2).joint_labels(LABELS, KNOWN)
    assert known.tolist() == [[True, True], [True, False], [True, True], [True, True], [False, False]]
    assert torch.equal(labels, LABELS)
    # A third step: it is negative after any step that is, and unknown after one that is unknown.
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    known = torch.tensor([[True, True, False], [True, False, False], [True, False, False], [True] * 3])
    joint, found = ESMM(10, 3).joint_labels(labels, known)
    assert found[:, 2].tolist() == [True, True, False, True]
    assert torch.equal(joint, labels)


SCHEMA = Schema((), (Numeric("n", 0.0, 1.0, (0.0, 1.0)),), ())
LEVELS, NUMBERS = torch.zeros(5, 0, dtype=torch.long), torch.rand(5, 1)


def objective(tasks: list[Task], **arguments: object) -> Objective:
    torch.manual_seed(0)
    model = ESMM(1, len(tasks), [6], **ESMM.task_arguments(tasks), **arguments)
    return Objective(Network(Inputs(SCHEMA), model), tasks)


def by_hand(logits: Tensor) -> Tensor:
    """Equation 3: cross-entropy of clicks, and of purchases over all rows, by their product."""
    click, buy = logits.sigmoid().unbind(-1)
    of_click = binary_cross_entropy(click[:4], LABELS[:4, 0])
    rows = [0, 2, 3]  # row 1 has an unknown purchase
    of_buy = binary_cross_entropy((click * buy)[rows], LABELS[rows, 1])
    return of_click + of_buy


def test_the_loss_is_that_of_the_paper_and_the_logits_are_conditional():
    ours = objective([CLICK, BUY])
    loss, logits, _ = ours(LEVELS, NUMBERS, LABELS, KNOWN)
    assert torch.equal(logits, ours.network(LEVELS, NUMBERS).logits)
    torch.testing.assert_close(loss, by_hand(logits))
    reversed_order = objective([BUY, CLICK])
    loss, logits, _ = reversed_order(LEVELS, NUMBERS, LABELS.flip(1), KNOWN.flip(1))
    torch.testing.assert_close(loss, by_hand(logits.flip(1)))


def test_replicas_and_members_have_the_same_loss():
    parts = [objective([CLICK, BUY]) for _ in range(2)]
    losses, logits, _ = Replicas(parts)(LEVELS, NUMBERS, LABELS, KNOWN)
    torch.testing.assert_close(losses[1], by_hand(logits[1]))
    ensemble = Ensemble(1, 2, lambda **sizes: ESMM(bottom_units=[6], **sizes), size=3)
    together = Objective(Network(Inputs(SCHEMA), ensemble), [CLICK, BUY])
    members = ensemble(together.network.inputs(LEVELS, NUMBERS)).member_logits
    loss = together(LEVELS, NUMBERS, LABELS, KNOWN).loss
    torch.testing.assert_close(loss, sum(map(by_hand, members)))


def test_processes_sum_the_weights_of_all_rows():
    reduced = SimpleNamespace(reduce=lambda values, reduce_op: 3 * values)
    trainer = SimpleNamespace(world_size=3, strategy=reduced)
    batch = Batch(LEVELS, NUMBERS, LABELS, KNOWN, None, None, None)
    assert label_totals(batch, objective([CLICK, BUY]), trainer).tolist() == [4, 3]


def test_other_tasks_keep_their_loss():
    tasks = [SPEND, Multiclass("genre", ("a", "b", "c"), name="genre"), BUY, CLICK]
    outputs = [task.num_outputs for task in tasks]
    ours = objective(tasks, task_outputs=outputs)
    logits = ours.network(LEVELS, NUMBERS).logits
    joint = ours.network.model.joint_logits(logits)
    assert torch.equal(joint[:, [0, 1, 2, 3, 5]], logits[:, [0, 1, 2, 3, 5]])
    torch.testing.assert_close(joint[:, 4], looped_joint(logits[:, 4:], [1, -1])[:, 0])


def test_parents_follow_from_where():
    assert ESMM.task_arguments([KEEP, SPEND, CLICK, BUY]) == {"parents": [3, -1, -1, 2]}
    levels = Binary("bought", ("1",), name="buy", where={"plan": ["gold"]})
    plan = Binary("plan", ("gold",), name="plan")
    assert ESMM.task_arguments([levels, plan]) == {"parents": [1, -1]}


@pytest.mark.parametrize("parents", [[-1], [-1, 2], [1, 0], [0, -1], [-2, -1]])
def test_bad_parents(parents: list[int]):
    with pytest.raises(ValueError, match=r"^parents.*: must"):
        ESMM(10, 2, parents=parents)


@pytest.mark.parametrize("task_outputs", [[3, 1], [1, 3]])
def test_a_product_needs_one_logit_for_each_task(task_outputs: list[int]):
    with pytest.raises(UserError, match=r"^parents=\[-1, 0\]: .* must have one logit each"):
        ESMM(10, 2, task_outputs=task_outputs)
    ESMM(10, 2, task_outputs=task_outputs, parents=[-1, -1])


def test_it_serves_every_command(train: Command, command):
    write_funnel(where=True)
    assert train(*QUICK, "model=esmm", "learner.scheduler=null", "hydra.run.dir=run").code == 0
    assert train("resume=run", "trainer.max_epochs=2").code == 0
    assert command("evaluate")("run=run", "resamples=0").code == 0
    assert command("predict")("run=run", "input=funnel.csv", "output=scores.csv").code == 0
    assert export(load("run"))[1] < 1e-5
    # Metrics are those of the clicked rows.
    found = load("run").predictions
    assert 0 < found["buy_label"].notna().sum() == (found["click_label"] == 1).sum() < len(found)
    assert train(*QUICK, "model=esmm", "replicas=2", "hydra.run.dir=replicas").code == 0
    ensemble = ["model=ensemble", "model@model.member=esmm", "model.size=2", "hydra.run.dir=ensemble"]
    assert train(*QUICK, *ensemble).code == 0
    tune = [*QUICK[:3], "model=esmm", "trials=1", "sampler=tpe", "folder=tune"]
    assert command("tune")(*tune).code == 0
    assert Path("tune/experiment/tuned_funnel_esmm.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["~data.tasks.buy.where"], "model=esmm: needs a binary task whose `where` names another"),
        (["data.tasks.buy.where={clicked: [0, 1]}"], "data.tasks.buy.where=clicked: must name the positive"),
        (
            ["~data.tasks.buy", "+data.tasks.spend={column: spend, kind: regression, where: clicked}",
             "data.main_task=click"],
            "model=esmm: needs a binary task",
        ),
    ],
)  # fmt: skip
def test_wrong_tasks_give_one_line(train: Command, options: list[str], message: str):
    write_funnel(where=True)
    done = train(*QUICK, "model=esmm", *options)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
