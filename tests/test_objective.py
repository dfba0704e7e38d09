import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mmoe import Batch, L2Constrained, MMoE, Network, Objective, Schema
from mmoe.data.columns import Categorical, Numeric
from mmoe.models.inputs import Inputs
from mmoe.tasks import Binary, Count, Multiclass, Regression, Task, logit_columns

SCHEMA = Schema((Categorical("a", ("x", "y")),), (Numeric("n", 0.0, 1.0, (0.0, 1.0)),), ())
TASKS = (Binary("c", ("x",), name="one"), Binary("c", ("x",), name="two"))
ROWS = (torch.randint(0, 3, (6, 1)), torch.rand(6, 1), torch.randint(0, 2, (6, 2)).float())


def objective(method=MMoE, weights=None, tasks=TASKS, **options: object) -> Objective:
    inputs = Inputs(SCHEMA)
    return Objective(Network(inputs, method(inputs.num_outputs, 2, **options)), tasks, weights)


def task(kind: str, **scale: float) -> Task:
    return Binary("c", ("x",), name=kind) if kind == "binary" else Regression("c", name=kind, **scale)


@pytest.mark.parametrize(("weights", "expected"), [(None, (1, 1)), ({"two": 0.25}, (1, 0.25))])
def test_the_loss_is_the_weighted_sum_over_tasks(weights, expected):
    loss, logits, _ = objective(weights=weights)(*ROWS)
    each = [binary_cross_entropy_with_logits(logits[:, t], ROWS[2][:, t]) for t in range(2)]
    torch.testing.assert_close(loss, expected[0] * each[0] + expected[1] * each[1])


@pytest.mark.parametrize("kinds", [("regression", "regression"), ("binary", "regression")])
def test_a_regression_has_the_squared_error(kinds):
    tasks = [task(kind) for kind in kinds]
    levels, numbers, labels = ROWS
    loss, logits, _ = objective(tasks=tasks)(levels, numbers, labels)
    losses = {"binary": binary_cross_entropy_with_logits, "regression": mse_loss}
    expected = sum(losses[kind](logits[:, t], labels[:, t]) for t, kind in enumerate(kinds))
    torch.testing.assert_close(loss, expected)


def test_a_weight_of_zero_leaves_the_tower_alone():
    ours = objective(weights={"two": 0})
    ours(*ROWS)[0].backward()
    towers = ours.network.model.towers[0].weight.grad
    assert towers[0].abs().sum() > 0
    assert towers[1].abs().sum() == 0


def test_a_penalty_is_added():
    plain, constrained = (objective(L2Constrained, strength=strength) for strength in (0.0, 0.5))
    constrained.load_state_dict(plain.state_dict())
    difference = constrained(*ROWS)[0] - plain(*ROWS)[0]
    torch.testing.assert_close(difference, constrained.network.model.penalty())
    assert difference > 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"one": -1}, "task_weights.one=-1: must be a finite number of at least 0"),
        ({"one": float("nan")}, "task_weights.one=nan: must be"),
        ({"one": "abc"}, "task_weights.one=abc: must be"),
        ({"three": 1}, "task_weights.three: must be one of the tasks one, two"),
        ({"one": True}, "task_weights.one=True: must be"),
        (
            {"one": 0, "two": 0.0},
            "task_weights={'one': 0, 'two': 0.0}: must be finite as float32, and one must be above 0",
        ),
        (
            {"one": 1e300},
            "task_weights={'one': 1e.300}: must be finite as float32, and one must be above 0",
        ),
        ([1, 2], r"task_weights=\[1, 2\]: must map names of tasks to numbers"),
        ([], r"task_weights=\[\]: must map names of tasks to numbers"),
        (2.5, "task_weights=2.5: must map names of tasks to numbers"),
        ("one", "task_weights=one: must map names of tasks to numbers"),
    ],
)
def test_task_weights_that_make_no_sense(weights, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        objective(weights=weights)


def test_weights_may_be_numbers_of_numpy():
    assert objective(weights={"two": np.float32(0.25)}).task_weights.tolist() == [1, 0.25]


@pytest.mark.parametrize("kinds", [("regression", "regression"), ("binary", "regression")])
def test_the_labels_of_a_regression_are_scaled(kinds):
    scales = [(5e4, 2e4) if kind == "regression" else (0.0, 1.0) for kind in kinds]
    scaled = [task(k, mean=mean, std=std) for k, (mean, std) in zip(kinds, scales, strict=True)]
    plain = [task(kind) for kind in kinds]
    torch.manual_seed(0)
    ours = objective(tasks=scaled)
    torch.manual_seed(0)
    theirs = objective(tasks=plain)
    levels, numbers, labels = ROWS
    mean, std = torch.tensor(scales).T
    torch.testing.assert_close(
        ours(levels, numbers, labels * std + mean)[0], theirs(*ROWS)[0], rtol=1e-4, atol=1e-5
    )
    assert set(ours.state_dict()) == set(theirs.state_dict())
    if kinds[0] == "regression":
        assert ours.bfloat16().mean_loss.mean.tolist() == mean.tolist()


def test_labels_far_from_zero_keep_their_digits():
    tasks = [Regression(name, name=name, mean=1e7 + 1, std=1.0) for name in ("one", "two")]
    labels = torch.tensor([[1e7, 1e7 + 3]])  # standardised: -1 and 2
    assert objective(tasks=tasks).mean_loss(torch.zeros(1, 2), labels, torch.ones(2)) == 2.5


MIXED = (
    Binary("c", ("x",), name="one", class_weights=[0.5, 2]),
    Multiclass("c", ("a", "b", "c"), name="two"),
    Regression("c", name="three", mean=2, std=3, loss="huber"),
    Count("c", name="four"),
)


def mixed(rows: int = 12) -> tuple[Objective, Batch]:
    torch.manual_seed(0)
    inputs = Inputs(SCHEMA)
    model = MMoE(inputs.num_outputs, 4, task_outputs=[task.num_outputs for task in MIXED])
    columns = [torch.randint(0, 2, (rows,)), torch.randint(0, 3, (rows,)), torch.randn(rows)]
    labels = torch.stack([*columns, torch.poisson(torch.full((rows,), 2.0))], dim=1)
    known = torch.rand(rows, 4) < 0.6
    levels, numbers = torch.randint(0, 3, (rows, 1)), torch.rand(rows, 1)
    batch = Batch(levels, numbers, labels * known, known, 3 * torch.rand(rows, 4))
    return Objective(Network(inputs, model), MIXED, {"two": 0.5}), batch


def test_masks_and_weights_equal_dropping_rows_by_hand():
    ours, batch = mixed()
    loss, logits, _ = ours(*batch)
    assert logits.shape == (12, 6)
    expected = torch.tensor(0.0)
    for t, (task, own) in enumerate(zip(MIXED, logit_columns(MIXED), strict=True)):
        kept = batch.known[:, t]
        losses = task.losses(logits[kept][:, own], batch.labels[kept, t])
        weights = batch.weights[kept, t]
        expected = expected + (0.5 if t == 1 else 1) * (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(loss, expected)
    unweighted = ours(*batch._replace(known=None, weights=None)).loss
    ones = torch.ones_like(batch.labels)
    torch.testing.assert_close(ours(*batch._replace(known=None, weights=ones)).loss, unweighted)
    torch.testing.assert_close(ours(*batch._replace(known=ones.bool(), weights=None)).loss, unweighted)


def test_unknown_labels_and_rows_of_weight_0_have_no_gradient():
    ours, batch = mixed()
    batch.known[:, 1] = False
    batch.weights[:, 3] = 0
    loss, logits, _ = ours(*batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    counts = batch.known.float() * batch.weights
    per_task = [gradient[:, own].abs().sum(1) for own in logit_columns(MIXED)]
    assert torch.equal(torch.stack(per_task, 1) > 0, counts > 0)
    nothing = batch._replace(known=torch.zeros_like(batch.known))
    loss = ours(*nothing).loss
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in ours.parameters())


def test_totals_of_all_processes_give_the_gradient_of_all_rows():
    ours, batch = mixed()
    whole = torch.autograd.grad(ours(*batch).loss, list(ours.parameters()))
    totals = (batch.known * batch.weights).sum(0) / 2
    parts = [batch.map(lambda tensor, s=s: tensor[s]) for s in (slice(0, 3), slice(3, 12))]
    gradients = [torch.autograd.grad(ours(*part[:6], totals).loss, list(ours.parameters())) for part in parts]
    for a, b, c in zip(whole, *gradients, strict=True):
        torch.testing.assert_close(a, (b + c) / 2, rtol=1e-4, atol=1e-7)
