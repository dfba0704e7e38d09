"""An ensemble is its members: each trained by its own loss, their mean probability the answer."""

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import config
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mmoe import runs
from mmoe.build import build, build_network
from mmoe.data.schema import Task
from mmoe.models.ensemble import Ensemble
from mmoe.models.mmoe import MMoE
from mmoe.models.sparse import SparseInputs
from mmoe.objective import Objective

MEMBER = partial(MMoE, num_experts=3, expert_units=[4], tower_units=[3])


def members(ensemble: Ensemble, x: torch.Tensor) -> torch.Tensor:
    """Logits of every member, one after the other, [M, B, T]."""
    stacked = ensemble.members.parameters_by_name()
    count = len(next(iter(stacked.values())))
    alone = MEMBER(num_inputs=ensemble.num_inputs, num_tasks=2)
    return torch.stack(
        [functional_call(alone, {k: v[m] for k, v in stacked.items()}, x).logits for m in range(count)]
    )


def test_the_answer_is_the_mean_probability():
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
    ensemble.of_probabilities = False
    torch.testing.assert_close(ensemble(x).logits, each.mean(0))


def test_sparse_inputs_give_the_same():
    torch.manual_seed(0)
    ensemble = Ensemble(6, 2, MEMBER, size=2).eval()
    x = SparseInputs(torch.tensor([[0, 3], [4, 2]], dtype=torch.int16), torch.randn(2, 2))
    assert torch.equal(ensemble(x).logits, ensemble(x.to_dense(6)).logits)


def test_every_member_learns_from_its_own_loss():
    data = build(config("data.source=sample"), "data")
    options = ["model=ensemble", "model.size=3", "data.source=sample"]
    network = build_network(config(*options), data.schema)
    rows = next(iter(data.train_dataloader()))
    loss, logits, _ = Objective(network, data.schema.tasks)(*rows)
    assert logits.shape == rows.labels.shape
    loss.backward()
    ensemble = network.model
    single = build_network(config("data.source=sample"), data.schema)
    losses = []
    for m in range(3):
        for name, values in ensemble.members.parameters_by_name().items():
            parameter = single.model.get_parameter(name)
            parameter.data, parameter.grad = values[m].detach().clone(), None
        alone = single(rows.codes, rows.numerics).logits
        losses.append(binary_cross_entropy_with_logits(alone, rows.labels, reduction="none").mean(0).sum())
        losses[-1].backward()
        for name, values in ensemble.members.parameters_by_name().items():
            torch.testing.assert_close(values.grad[m] * 3, single.model.get_parameter(name).grad)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_regressions_have_the_mean_of_the_logits():
    ensemble = Ensemble(2, 1, partial(MEMBER), size=2, mean="logit")

    class Plain(torch.nn.Module):
        model = ensemble

        def forward(self, codes: torch.Tensor, numerics: torch.Tensor):
            return ensemble(numerics)

    x, labels = torch.randn(5, 2), torch.randn(5, 1)
    objective = Objective(Plain(), [Task("y", "y", kind="regression")])
    each = ensemble(x).logits
    expected = mse_loss(each, labels.expand_as(each))
    torch.testing.assert_close(objective(torch.empty(5, 0), x, labels).loss, expected)


def test_it_is_trained_evaluated_exported_and_predicts_as_one(train, command):
    options = ["model=ensemble", "model.size=2", "model.member.num_experts=2", "trainer.max_epochs=1"]
    assert train("experiment=smoke", *options, "hydra.run.dir=run").code == 0
    metrics = pd.read_json("run/metrics.json", typ="series")
    assert metrics["test"]["income"]["auroc"] > 0.5
    done = command("export")("run=run", "format=torch_export")
    assert done.code == 0, done.err
    network = runs.load_network(Path("run"))
    assert isinstance(network.model, Ensemble)
    assert not network.training
    assert command("evaluate")("run=run").code == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.size=0", "model.size=0: must be an integer of at least 1"),
        ("model.mean=median", "model.mean=median: must be probability or logit"),
        ("model.member.num_experts=0", "model.num_experts=0: must be an integer of at least 1"),
        ("inputs.dropout=1", "inputs.dropout=1: must be"),
    ],
)
def test_mistakes(train, option: str, message: str):
    done = train("experiment=smoke", "model=ensemble", option)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
