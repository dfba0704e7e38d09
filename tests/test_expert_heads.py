"""Experts with heads learn from their own losses, and gates weigh their predictions."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from test_kinds import DATA
from torch import Tensor

from mmoe import MMoE, analysis, load
from mmoe.models.ensemble import Ensemble
from mmoe.models.mean_prediction import MeanPrediction
from mmoe.tasks import Binary, Count, Multiclass, Regression
from mmoe.training.preparation import constructor_arguments

TASKS = [
    Binary("b", ("1",), name="b"),
    Multiclass("m", ("x", "y", "z"), name="m"),
    Regression("r", name="r", mean=2.0, std=3.0),
    Count("c", name="c", mean=2.0),
]


def make(**options: object) -> MMoE:
    torch.manual_seed(0)
    return MMoE(**{"num_inputs": 6, "num_tasks": 2, "num_experts": 3, "expert_heads": True, **options})


class WithOptions(MMoE):
    """Takes the arguments of its base."""

    def __init__(self, width: int = 8, **options: Any) -> None:
        super().__init__(expert_units=[width], **options)


class OfItsOwn(MMoE):
    """Takes only its own arguments."""

    def __init__(self, num_inputs: int, num_tasks: int) -> None:
        super().__init__(num_inputs, num_tasks)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradients_are_finite_where_a_gate_is_0(kind: torch.dtype):
    model, x = make(gate_dropout=0.5).to(kind), torch.randn(64, 6, dtype=kind)
    output = model(x)
    assert (output.gates == 0).any()
    assert output.member_logits.dtype == kind
    output.member_logits.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_subclass_gets_the_arguments_that_it_takes():
    assert {"width", "averages", "input_groups", "num_experts"} <= constructor_arguments(WithOptions)
    assert constructor_arguments(OfItsOwn) == {"self", "num_inputs", "num_tasks"}


def test_weights_average_predictions_of_every_kind():
    torch.manual_seed(0)
    logits, gates = torch.randn(5, 7, 6), torch.rand(5, 7, 4).softmax(0)
    widths = [task.num_outputs for task in TASKS]
    mean = MeanPrediction(widths, [task.average for task in TASKS])(logits, gates)
    for t, (task, own) in enumerate(zip(TASKS, torch.split(logits, widths, -1), strict=True)):
        expected = sum(gates[m, :, t : t + 1] * task.activation(own[m]) for m in range(5))
        torch.testing.assert_close(task.activation(torch.split(mean, widths, -1)[t]), expected)
    equal = torch.full_like(gates, 0.2)
    every = MeanPrediction(widths, [task.average for task in TASKS])
    torch.testing.assert_close(every(logits, equal), every(logits))


def test_the_output_is_the_mean_of_the_experts_by_the_gates():
    model, x = make(), torch.randn(9, 6)
    output = model.train()(x)
    logits = output.member_logits
    assert logits.shape == (4, 9, 2)
    assert torch.equal(output.logits, logits[0])
    served, gates = model.eval()(x)
    torch.testing.assert_close(served, logits[0])
    expected = torch.einsum("bte,ebt->bt", gates, logits[1:].sigmoid())
    torch.testing.assert_close(served.sigmoid(), expected)
    assert (logits[1:].std(0) > 1e-4).all()


def test_each_loss_trains_its_own_part():
    model, x = make(), torch.randn(9, 6)

    def gradients(index: int) -> tuple[Tensor, Tensor]:
        """Of the first layer: whether each expert, and whether each gate, gets a gradient."""
        model.zero_grad()
        model.train()(x).member_logits[index].sum().backward()
        experts, gates = model.weight.grad.split(model.first_widths, dim=1)
        return experts.unflatten(1, (3, -1)).abs().sum((0, 2)) > 0, gates.unflatten(1, (2, -1)).any((0, 2))

    experts, gates = gradients(0)
    assert not experts.any()
    assert gates.all()
    for expert in range(3):
        experts, gates = gradients(1 + expert)
        assert experts.tolist() == [e == expert for e in range(3)]
        assert not gates.any()


def test_dropped_experts_do_not_count():
    model = make(gate_dropout=0.5)
    _, gates, logits = model.train()(torch.randn(200, 6))
    assert (gates == 0).any()
    assert logits.isfinite().all()
    expected = torch.einsum("bte,ebt->bt", gates, logits[1:].sigmoid())
    torch.testing.assert_close(logits[0].sigmoid(), expected)
    logits.sum().backward()
    assert model.weight.grad.isfinite().all()


def test_an_ensemble_of_networks_with_heads():
    torch.manual_seed(0)
    member = partial(MMoE, num_experts=3, expert_heads=True)
    ensemble, x = Ensemble(6, 2, member, size=4), torch.randn(9, 6)
    output = ensemble.train()(x)
    logits = output.member_logits
    assert logits.shape == (4 * (1 + 3), 9, 2)
    served = ensemble.eval()(x).logits
    torch.testing.assert_close(output.logits, served)
    outputs = logits.unflatten(0, (4, 4))[:, 0]
    torch.testing.assert_close(served.sigmoid(), outputs.sigmoid().mean(0))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "weights",
    [["balance=constant"], ["balance=uncertainty", "+data.count_task=false"]],
    ids=["constant", "learned"],
)
def test_experts_learn_tasks_of_all_kinds(
    train: Command, command: Callable, replicas: int, weights: list[str]
):
    quick = [*DATA, "trainer.max_epochs=4", "learner.optimizer.lr=0.01"]
    views = ["model.column_share=0.5", "model.column_scale_rate=3"]
    given = ["model.expert_heads=true", *views, f"replicas={replicas}", *weights]
    done = train(*quick, *given, "hydra.run.dir=run")
    assert done.code == 0, done.err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"]["click"]["auroc"] > 0.6
    run = load("run", ["test_kinds"])
    if replicas == 1:
        assert analysis.expert_ablation(run).notna().all(axis=None)
        for form in ("onnx", "torch_export"):
            done = command("export")("run=run", f"format={form}")
            assert done.code == 0, done.err
