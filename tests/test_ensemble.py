"""An ensemble trains each member by its own loss and predicts their mean probability."""

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import config
from omegaconf import OmegaConf
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mmoe import load
from mmoe.build import build
from mmoe.data.census_files import SAMPLE_DIR
from mmoe.errors import UserError
from mmoe.models.ensemble import Ensemble
from mmoe.models.mmoe import MMoE
from mmoe.tasks import Binary, Count, Multiclass, Regression, logit_columns
from mmoe.training.objective import Objective
from mmoe.training.preparation import build_network

MEMBER = partial(MMoE, num_experts=3, expert_units=[4], tower_units=[3])


def members(ensemble: Ensemble, x: torch.Tensor) -> torch.Tensor:
    """Logits [M, B, T], computed one member after the other."""
    stacked = ensemble.members.parameters_by_name()
    count = len(next(iter(stacked.values())))
    alone = MEMBER(num_inputs=x.shape[1], num_tasks=2)
    return torch.stack(
        [functional_call(alone, {k: v[m] for k, v in stacked.items()}, x).logits for m in range(count)]
    )


def test_the_prediction_is_the_mean_probability():
    torch.manual_seed(0)
    ensemble, x = Ensemble(6, 2, MEMBER, size=4).eval(), torch.randn(9, 6)
    each = members(ensemble, x)
    assert each.shape == (4, 9, 2)
    assert (each.std(0) > 1e-3).all()
    torch.testing.assert_close(ensemble(x).logits.sigmoid(), each.sigmoid().mean(0))
    assert ensemble(x).gates.shape == (9, 2, 0)
    far = ensemble(x * 1e4).logits  # probabilities that float32 rounds to 1
    assert far.isfinite().all()
    assert far.abs().max() > 50
    ensemble.mean = None  # as with mean=logit
    torch.testing.assert_close(ensemble(x).logits, each.mean(0))


def test_every_member_learns_from_its_own_loss():
    data = build(config("data.source=sample"), "data")
    options = ["model=ensemble", "model.size=3", "data.source=sample"]
    network = build_network(config(*options), data.schema)
    rows = next(iter(data.train_dataloader()))
    loss, logits, _ = Objective(network, data.schema.tasks)(*rows)
    ensemble = network.model
    # Training metrics use the same averaged prediction as validation.
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(rows.levels, rows.numbers).logits)
    loss.backward()
    single = build_network(config("data.source=sample"), data.schema)
    losses = []
    for m in range(3):
        for name, values in ensemble.members.parameters_by_name().items():
            parameter = single.model.get_parameter(name)
            parameter.data, parameter.grad = values[m].detach().clone(), None
        alone = single(rows.levels, rows.numbers).logits
        losses.append(binary_cross_entropy_with_logits(alone, rows.labels, reduction="none").mean(0).sum())
        losses[-1].backward()
        for name, values in ensemble.members.parameters_by_name().items():
            torch.testing.assert_close(values.grad[m], single.model.get_parameter(name).grad)
    torch.testing.assert_close(loss, torch.stack(losses).sum())


def test_a_member_trains_as_it_does_alone():
    data = build(config("data.source=sample"), "data")
    network = build_network(config("model=ensemble", "model.size=3", "data.source=sample"), data.schema)
    first = {
        name: values[1].detach().clone()
        for name, values in network.model.members.parameters_by_name().items()
    }
    single = build_network(config("data.source=sample"), data.schema)
    single.model.load_state_dict(first)
    batches = list(data.train_dataloader())[:8]
    for trained in (network, single):
        objective = Objective(trained, data.schema.tasks)
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
        for rows in batches:
            optimizer.zero_grad()
            objective(*rows).loss.backward()
            optimizer.step()
    for name, values in network.model.members.parameters_by_name().items():
        assert (single.model.get_parameter(name) - first[name]).norm() > 0.01 * first[name].norm()
        torch.testing.assert_close(values[1], single.model.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_regressions_average_the_logits():
    ensemble = Ensemble(2, 1, partial(MEMBER), size=2, mean="logit")

    class Plain(torch.nn.Module):
        model = ensemble

        def forward(self, levels: torch.Tensor, numbers: torch.Tensor):
            return ensemble(numbers)

    x, labels = torch.randn(5, 2), torch.randn(5, 1)
    objective = Objective(Plain(), [Regression("y", name="y")])
    each = ensemble(x).member_logits
    expected = 2 * mse_loss(each, labels.expand_as(each))
    loss, logits, _ = objective(torch.empty(5, 0), x, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, each.mean(0))
    torch.testing.assert_close(ensemble.eval()(x).logits, each.mean(0))


def test_every_command_works_with_an_ensemble(train, command):
    options = ["model=ensemble", "model.size=2", "model.member.num_experts=2", "trainer.max_epochs=1"]
    assert train("experiment=smoke", *options, "hydra.run.dir=run").code == 0
    metrics = pd.read_json("run/metrics.json", typ="series")
    assert metrics["test"]["income"]["auroc"] > 0.5
    done = command("export")("run=run", "format=torch_export")
    assert done.code == 0, done.err
    network = load(Path("run")).network()
    assert isinstance(network.model, Ensemble)
    assert not network.training
    assert command("evaluate")("run=run").code == 0
    (evaluated,) = json.loads(Path("run/evaluation_test_best.json").read_text())["checkpoints"]
    for task in ("income", "marital"):
        assert evaluated["metrics"][task]["auroc"] == pytest.approx(metrics["test"][task]["auroc"], abs=1e-6)
    rows = SAMPLE_DIR / "census-income.test.gz"
    assert command("predict")("run=run", f"input={rows}", "output=scores.parquet").code == 0
    scores, stored = pd.read_parquet("scores.parquet"), pd.read_parquet("run/predictions.parquet")
    for task in ("income", "marital"):
        again = scores[f"{task}_probability"].iloc[stored["row"]].to_numpy()
        assert again == pytest.approx(stored[f"{task}_probability"].to_numpy(), abs=1e-6)


def test_the_best_ensemble_has_the_best_networks_as_members():
    single, many = config("experiment=census_best"), config("experiment=census_best_ensemble")
    member = OmegaConf.to_container(many.model.member)
    del member["_partial_"]
    assert member == OmegaConf.to_container(single.model)
    for key in ("inputs", "data", "learner", "objective"):
        assert many[key] == single[key], key


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.size=0", "model.size=0: must be an integer of at least 1"),
        ("model.mean=median", "model.mean=median: must be probability or logit"),
        ("model.member.num_experts=0", "model.member.num_experts=0: must be an integer of at least 1"),
        ("inputs.dropout=1", "inputs.dropout=1: must be"),
        ("+model.member.foo=1", "got an unexpected keyword argument 'foo'"),
        ("model@model.member=l2_constrained", "model.member=L2Constrained: must have no penalty"),
        ("model@model.member=ensemble", "model.member=Ensemble: must build a module that is not an ensemble"),
        ("model.member._target_=builtins.dict", "model.member=dict: must build a module"),
    ],
)
def test_bad_options(train, option: str, message: str):
    done = train("experiment=smoke", "model=ensemble", option)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_each_task_needs_its_average():
    with pytest.raises(UserError, match=r"^averages: must be 2 functions, one for each task"):
        Ensemble(6, 2, MEMBER, averages=[Binary.average])
    with pytest.raises(UserError, match=r"^averages: must be 2 functions, one for each task"):
        Ensemble(6, 2, MEMBER, averages=[])
    for build_model in (partial(Ensemble, member=MEMBER), partial(MMoE, expert_heads=True)):
        with pytest.raises(UserError, match=r"^averages: must be given for tasks with 3 logits"):
            build_model(num_inputs=6, num_tasks=2, task_outputs=[1, 3])
    Ensemble(6, 2, MEMBER, mean="logit", task_outputs=[1, 3])


def test_each_kind_averages_its_predictions():
    tasks = [
        Binary("b", ("x",), name="b"), Multiclass("m", ("x", "y", "z"), name="m"), Regression("r", name="r"),
        Count("c", name="c", mean=2.5),
    ]  # fmt: skip
    outputs = [task.num_outputs for task in tasks]
    ensemble = Ensemble(6, 4, MEMBER, size=3, task_outputs=outputs, averages=[task.average for task in tasks])
    x = torch.randn(9, 6)
    each, together = ensemble(x).member_logits, ensemble.eval()(x).logits
    assert each.shape == (3, 9, 6)
    assert ensemble(x).gates.shape == (9, 4, 0)
    for task, own in zip(tasks, logit_columns(tasks), strict=True):
        expected = task.activation(each[..., own]).mean(0)
        torch.testing.assert_close(task.activation(together[:, own]), expected)
