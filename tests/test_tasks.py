"""Each kind of task has the loss, predictions, labels and statistics that its definition says."""

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import mmoe
from mmoe import Binary, Count, Multiclass, Regression, Schema, Task
from mmoe.data.encode import encode
from mmoe.data.encode_labels import encode_labels
from mmoe.errors import ArgumentError, UserError
from mmoe.tasks import logit_columns, validation_metrics
from mmoe.tasks.serialization import task_from_config

CLASSES = ("a", "b", "c")
TASKS = [
    Binary("c", ["x"], name="binary"),
    Binary("c", ["x"], name="weighted", class_weights=[0.5, 3]),
    Binary("c", ["x"], name="focal", class_weights=[2, 1], focal_gamma=2),
    Multiclass("c", CLASSES, name="classes"),
    Multiclass("c", CLASSES, name="weighted_classes", class_weights=[1, 2, 0.5], focal_gamma=1.5),
    Regression("c", name="squared", mean=5, std=2),
    Regression("c", name="absolute", mean=-1, std=3, loss="absolute"),
    Regression("c", name="huber", loss="huber", huber_delta=0.5),
    Count("c", name="count", mean=0.5),
    Count("c", name="large_count", mean=20),
]
IDS = [task.name for task in TASKS]


def labels_for(task: Task, *shape: int) -> Tensor:
    if isinstance(task, Binary):
        return torch.randint(0, 2, shape).float()
    if isinstance(task, Multiclass):
        return torch.randint(0, task.num_outputs, shape).float()
    return torch.poisson(torch.full(shape, 3.0)) if isinstance(task, Count) else torch.randn(shape)


def plain_loss(task: Task, logits: list[float], y: float) -> float:
    """The loss of one row, by the formulas of the documentation."""
    if isinstance(task, Regression):
        error = abs(logits[0] - (y - task.mean) / task.std)
        d = task.huber_delta
        huber = error**2 / 2 if error < d else d * (error - d / 2)
        return {"squared": error**2, "absolute": error, "huber": huber}[task.loss]
    if isinstance(task, Count):
        mu = task.mean * math.exp(logits[0])
        return (mu - y * logits[0]) / max(task.mean, 1)
    if isinstance(task, Binary):
        p = 1 / (1 + math.exp(-logits[0]))
        p, k = (p if y else 1 - p), int(y)
    else:
        p, k = math.exp(logits[int(y)]) / sum(map(math.exp, logits)), int(y)
    weight = task.class_weights[k] if task.class_weights else 1
    return -weight * (1 - p) ** task.focal_gamma * math.log(p)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_the_loss_is_the_formula(task: Task):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 8, task.num_outputs, dtype=torch.double), labels_for(task, 3, 8).double()
    found = task.losses(logits, labels)
    expected = [
        [plain_loss(task, row.tolist(), y.item()) for row, y in zip(*part, strict=True)]
        for part in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_the_loss_works_under_vmap_and_far_from_0(task: Task):
    logits, labels = torch.randn(4, 6, task.num_outputs), labels_for(task, 4, 6)
    together = torch.vmap(task.losses)(logits, labels)
    torch.testing.assert_close(together, task.losses(logits, labels))
    shared = torch.vmap(task.losses, (0, None))(logits, labels[0])
    torch.testing.assert_close(shared[2], task.losses(logits[2], labels[0]))
    far = torch.tensor([-60.0, 0.0, 60.0])[:, None].repeat(1, task.num_outputs).requires_grad_()
    loss = task.losses(far, labels_for(task, 3)).sum()
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()


@pytest.mark.parametrize(
    "tasks", [TASKS[:1] * 3, [Regression("c", name=n, mean=m, std=2) for n, m in (("a", 1), ("b", -4))]]
)
def test_the_joint_loss_is_the_mean_of_the_losses(tasks: list[Task]):
    torch.manual_seed(0)
    logits, weights = torch.randn(5, 7, len(tasks)), torch.rand(len(tasks))
    labels = torch.stack([labels_for(task, 5, 7) for task in tasks], dim=-1)
    joint = type(tasks[0]).mean_loss(tasks)
    each = [weights[t] * task.losses(logits[..., [t]], labels[..., t]) for t, task in enumerate(tasks)]
    torch.testing.assert_close(joint(logits, labels, weights), torch.stack(each).mean())


def test_tasks_with_weights_or_other_losses_have_no_joint_loss():
    assert Binary.mean_loss(TASKS[:2]) is None
    assert Binary.mean_loss([TASKS[2]]) is None
    assert Multiclass.mean_loss([TASKS[3]]) is None
    assert Regression.mean_loss(TASKS[5:7]) is None
    assert Count.mean_loss([TASKS[8]]) is None


def test_the_gradients_of_a_count_and_a_class_vanish_at_their_means():
    """A network that can only predict a constant predicts the mean count, and the shares of the classes."""
    count, labels = Count("c", mean=4), torch.tensor([1.0, 3.0, 8.0])
    logits = torch.zeros(3, 1, requires_grad=True)
    count.losses(logits, labels).sum().backward()
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-6)
    classes = Multiclass("c", CLASSES)
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(4, 3).clone().requires_grad_()
    classes.losses(logits, torch.tensor([0.0, 0.0, 1.0, 2.0])).sum().backward()
    assert logits.grad.sum(0).abs().max().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_predictions_equal_the_formula_in_float64(task: Task):
    logits = torch.randn(2, 5, task.num_outputs)
    found = task.predict(logits.clone().requires_grad_()).detach()
    x = logits.double()
    expected = {
        "binary": lambda: 1 / (1 + (-x).exp()),
        "multiclass": lambda: x.exp() / x.exp().sum(-1, keepdim=True),
        "regression": lambda: x * task.std + task.mean,
        "count": lambda: x.exp() * task.mean,
    }[task.kind]()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(task.activation(logits), expected.float())


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_averaged_logits_give_the_mean_prediction(task: Task):
    members = torch.randn(4, 9, task.num_outputs)
    torch.testing.assert_close(task.activation(task.average(members)), task.activation(members).mean(0))


def test_the_tables_have_the_names_of_the_columns():
    names = {task.name: list(task.table(np.eye(3)[:, : task.num_outputs])) for task in TASKS}
    assert names["binary"] == ["binary_probability"]
    assert names["classes"] == [
        "classes_class", "classes_probability_a", "classes_probability_b", "classes_probability_c",
    ]  # fmt: skip
    assert names["squared"] == ["squared_prediction"]
    assert names["count"] == ["count_prediction"]
    assert TASKS[3].table(np.eye(3))["classes_class"].tolist() == ["a", "b", "c"]
    assert [list(task.prediction_columns) for task in TASKS] == list(names.values())
    assert [task.probability_column for task in (TASKS[0], TASKS[3])] == ["binary_probability", None]


def test_logits_of_tasks_follow_each_other():
    assert logit_columns(TASKS[2:5]) == [slice(0, 1), slice(1, 4), slice(4, 7)]
    assert validation_metrics([TASKS[5]])["val/squared/r2"] is True
    assert next(iter(validation_metrics(TASKS[5:]))) == "val/squared/mse"


@pytest.mark.parametrize(
    "values",
    [[0, 1, None], [1.0, 0.0, np.nan], [False, True, None], ["0", "1", None], ["no", "Yes", ""],
     pd.array([0, 1, None], dtype="Int64"), pd.Categorical(["No", "yes", None]), ["1.0", "0.0", None]],
)  # fmt: skip
def test_the_positive_level_may_be_obvious(values: object):
    series = pd.Series(values)
    task = Binary("c").fit(series)
    labels, known = task.encode(series)
    assert known.tolist() == [True, True, False]
    assert sorted(labels[:2].tolist()) == [0, 1]
    again, _ = task.encode(pd.Series([values[1]]))
    assert again.tolist() == labels[1:2].tolist()


@pytest.mark.parametrize("level", [1, 1.0, True, "1", np.int8(1), np.bool_(True)])
def test_positive_levels_are_compared_as_text(level: object):
    is_boolean = isinstance(level, bool | np.bool_)
    column = pd.Series([False, True]) if is_boolean else pd.Series([0, 1])
    task = Binary("c", [level]).fit(column)
    assert task.positive == (("true",) if is_boolean else ("1",))
    assert task.encode(column)[0].tolist() == [0, 1]


def test_statistics_of_the_training_labels():
    number = Regression("c").fit(pd.Series([1.0, 2, np.nan, 3, 10]))
    assert (number.mean, number.std) == pytest.approx((4, np.std([1, 2, 3, 10])))
    assert Regression("c").fit(pd.Series([7, 7])).std == 1
    assert Count("c").fit(pd.Series([0, 4, None])).mean == 2
    assert Count("c").fit(pd.Series([0, 0])).mean == 1
    assert Multiclass("c").fit(pd.Series(["10", "9", None, "9"])).classes == ("9", "10")
    assert Multiclass("c").fit(pd.Series([2.0, 1.0, np.nan])).classes == ("1", "2")
    balanced = Binary("c", ["x"], class_weights="balanced").fit(pd.Series(["x", "y", "y", "y", None]))
    assert balanced.class_weights == pytest.approx((4 / 6, 2))
    three = Multiclass("c", class_weights="balanced").fit(pd.Series(list("aabbbbcc")))
    assert np.dot(three.class_weights, [2, 4, 2]) == pytest.approx(8)
    assert three.class_weights[0] == 2 * three.class_weights[1]


def test_each_kind_describes_its_labels():
    numbers = np.array([2.0, 2, 0, 0, 0])
    known = {"binary": np.array([1.0, 0, 0, 0, 0]), "classes": numbers, "squared": numbers, "count": numbers}
    tasks = [task for task in TASKS if task.name in known]
    described = {
        "binary": "20.00 % positive ('x')",
        "classes": "3 classes; 'a' has 60.00 %",
        "squared": "mean 0.8, standard deviation 0.9798",
        "count": "mean 0.8, standard deviation 0.9798",
    }
    assert {task.name: task.describe_labels(known[task.name]) for task in tasks} == described
    rarest = {"binary": 1, "classes": 0, "squared": 5, "count": 5}  # no label has the class b
    assert {task.name: task.count_rarest(known[task.name]) for task in tasks} == rarest
    assert tasks[0].count_rarest(np.ones(4)) == tasks[1].count_rarest(np.ones(0)) == 0
    assert tasks[1].describe_labels(numbers, str.upper).endswith("A has 60.00 %")
    assert Binary("c", ["x", "y"]).describe_labels(np.ones(2)) == "100.00 % positive ('x', 'y')"


def test_class_weights_and_the_focal_loss_shift_probabilities():
    shifted = [task.name for task in TASKS if task.shifts_probabilities]
    assert shifted == ["weighted", "focal", "weighted_classes"]
    assert Multiclass("c", CLASSES, focal_gamma=1).shifts_probabilities


def test_labels_decode_to_what_they_were():
    given = pd.Series(["b", None, "a", "c"])
    task = Multiclass("c", name="m").fit(given)
    labels, known = task.encode(given)
    assert task.decode(labels, known).tolist() == ["b", None, "a", "c"]
    assert task.decode(labels).tolist() == ["b", "a", "a", "c"]
    assert Binary("c", ["x"]).decode(np.float32([0, 1])).dtype == np.int8
    assert np.isnan(Count("c").decode(np.float32([0, 1]), np.array([False, True]))).tolist() == [True, False]


def test_a_class_that_training_did_not_see_is_unknown(caplog: pytest.LogCaptureFixture):
    task = Multiclass("c", CLASSES, name="m")
    with caplog.at_level(logging.WARNING):
        labels, known = task.encode(pd.Series(["a", "z", None, "c"]))
    assert labels.tolist() == [0, 0, 0, 2]
    assert known.tolist() == [True, False, False, True]
    assert "column c: 1 rows have a class that training did not see, such as 'z'" in caplog.text


FRAME = pd.DataFrame(
    {
        "x": ["u", "v", "u", "v", "u"],
        "clicked": [1, 0, 1, 0, 1],
        "plan": ["gold", "silver", "free", None, "gold"],
        "spend": [2.0, 5.0, np.nan, 7.0, 4.0],
        "exposure": [0.5, 1.0, 2.0, 0.0, 1.5],
        "sample": [2, 2, 2, 1, 1],
    }
)


def test_where_and_missing_labels_make_labels_unknown():
    tasks = [
        Binary("clicked", [1], name="click"),
        Regression("spend", where="clicked", name="spend"),
        Regression("spend", where={"plan": ["gold", "silver"]}, name="plan"),
    ]
    labels, known, weights = encode_labels(FRAME, tasks)
    assert known.T.tolist() == [
        [True] * 5, [True, False, False, False, True], [True, True, False, False, True],
    ]  # fmt: skip
    assert labels.T.tolist() == [[1, 0, 1, 0, 1], [2, 0, 0, 0, 4], [2, 5, 0, 0, 4]]
    assert weights is None
    for level in ("TRUE", "Yes", "1.0", True, 1):
        column = pd.Series([level, "no"], dtype=object)
        assert encode_labels(FRAME[:2].assign(clicked=column), tasks[1:2])[1].tolist() == [[True], [False]]
    bad = FRAME.assign(spend=[2.0, "-", None, "-", 4.0])  # text where the label does not apply is no mistake
    assert torch.equal(encode_labels(bad, tasks[1:2])[0], labels[:, 1:2])


def test_each_task_has_its_own_weights():
    tasks = [Binary("clicked", name="a", positive=[1]), Count("clicked", name="b", weight="exposure")]
    _, known, weights = encode_labels(FRAME, tasks)
    assert known is None
    assert weights.T.tolist() == [[1] * 5, [0.5, 1, 2, 0, 1.5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exposure": [1, 2, -0.5, 1, 1]}, "column exposure, row 2: must be a weight of at least 0, is -0.5"),
        ({"exposure": [1, None, 2, 1, 1]}, "column exposure, row 1: must be a weight .*, is missing"),
        ({"exposure": ["1", 2, 2, 1, 1]}, "column exposure, row 0: must be a number, is '1'"),
        ({"clicked": [0, 1, -1, 0, 0]}, "column clicked, row 2: must be a count, .*, is -1"),
        ({"clicked": [0, 1, 1, 0.5, 0]}, "column clicked, row 3: must be a count, .*, is 0.5"),
        ({"spend": [0, 1, "much", 0, 0]}, "column spend, row 2: must be a number, is 'much'"),
        ({"spend": [0, 1, np.inf, 0, 0]}, "column spend, row 2: must be a finite number"),
    ],
)
def test_invalid_labels_and_weights(change: dict[str, object], message: str):
    tasks = [Count("clicked", name="n", weight="exposure"), Regression("spend", name="s")]
    encode_labels(FRAME, tasks)
    with pytest.raises(UserError, match=f"^{message}"):
        encode_labels(FRAME.assign(**change), tasks)
    with pytest.raises(UserError, match=r"^column no is missing"):
        encode_labels(FRAME, [Count("clicked", name="n", where="no")])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Binary("plan", name="t"), "data.tasks.t.positive: must name the levels of plan .*'free', 'gold'"),
        (Binary("plan", ["glod"], name="t"), "data.tasks.t.positive: 'glod' is not a level of plan"),
        (Regression("spend", name="t", where={"plan": ["no"]}),
         "data.tasks.t: must have a label in at least one training row, but column spend has none where p"),
        (Multiclass("plan", name="t", class_weights=[1, 2]), "tasks.t.class_weights=.*: must have 3 numbers"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_fitted(task: Task, message: str):
    from mmoe.data.frame_values import known_labels

    with pytest.raises(UserError, match=f"^{message}"):
        task.fit(known_labels(FRAME, task))


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_json_round_trip(task: Task):
    schema = Schema((), (), (task,))
    stored = json.loads(schema.to_json())
    assert stored["tasks"][0]["kind"] == task.kind
    assert Schema.from_json(schema.to_json()) == schema
    assert hash(task) == hash(Schema.from_json(schema.to_json()).tasks[0])


def test_tasks_of_a_configuration():
    made = task_from_config("spend", {"column": "spend", "kind": "regression", "where": {"plan": ["gold"]}})
    assert made == Regression("spend", name="spend", where="plan", where_levels=("gold",))
    made = task_from_config("click", {"column": "c", "positive": [1, True], "weight": None})
    assert made == Binary("c", ("1", "true"), name="click")
    assert task_from_config("n", {"column": "c", "kind": "count"}) == Count("c", name="n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "tasks.t=5: must be a mapping"),
        ({}, "tasks.t.column: must be given"),
        ({"column": "c", "kind": "ranking"}, "tasks.t.kind=ranking: must be one of binary, multiclass"),
        ({"column": "c", "positve": [1]}, "tasks.t.positve: must be one of .* did you mean positive"),
        ({"column": "c", "kind": "count", "positive": [1]}, "tasks.t.positive: must be one of kind, column"),
        ({"column": "c", "kind": "regression", "mean": 3}, "tasks.t.mean: must be one of"),
        ({"column": 5}, "tasks.t.column=5: must be text"),
        ({"column": "c", "positive": "yes"}, "tasks.t.positive='yes': must be a list"),
        ({"column": "c", "positive": [{}]}, "tasks.t.positive: must be a list of levels"),
        ({"column": "c", "class_weights": "even"}, "tasks.t.class_weights=even: must be balanced"),
        ({"column": "c", "class_weights": [1, 2, 3]}, "tasks.t.class_weights=.*: must have 2 numbers"),
        ({"column": "c", "class_weights": [0, 0.0]}, "tasks.t.class_weights=.*: must have a number above 0"),
        ({"column": "c", "class_weights": [1, -2]}, "tasks.t.class_weights=-2: must be a finite number"),
        ({"column": "c", "focal_gamma": "x"}, "tasks.t.focal_gamma=x: must be a finite number"),
        ({"column": "c", "where": {"a": [1], "b": [1]}}, "tasks.t.where=.*: must name one column"),
        ({"column": "c", "where": 5}, "tasks.t.where=5: must be text"),
        ({"column": "c", "kind": "regression", "loss": "l1"}, "tasks.t.loss=l1: must be one of squared"),
        ({"column": "c", "kind": "regression", "huber_delta": 0}, "tasks.t.huber_delta=0: must be a finite"),
    ],
)  # fmt: skip
def test_bad_configurations(given: object, message: str):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        task_from_config("t", given)


def test_the_encoder_keeps_the_labels_of_its_frame():
    schema = Schema((), (), (Multiclass("plan", name="p").fit(FRAME["plan"]),))
    rows = encode(FRAME, schema)
    assert rows.known[:, 0].tolist() == [True, True, True, False, True]
    assert one_hot(rows.labels[:, 0].long(), 3).sum(0).tolist() == [2, 2, 1]
    assert mmoe.Multiclass is Multiclass
