"""Bootstrap metrics equal those of the drawn rows, and their intervals cover the true value."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_metrics import KINDS, rows_of_all_kinds

from mmoe import intervals
from mmoe.metrics import resampled
from mmoe.tasks import Binary, Regression, logit_columns
from mmoe.training.task_metrics import TaskMetrics

BINARY, NUMBER = Binary("c", ("x",), name="one"), Regression("c", name="two")


def rows(ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 2))
    if ties:
        logits = logits.round(1)
    positive = random.random(400) < 1 / (1 + np.exp(-logits[:, 0]))
    return logits, np.stack([positive, logits[:, 1] + random.normal(size=400)], 1).astype(np.float32)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [
        (0.1, 100, (0.0552, 0.1744)),
        (0.0, 10, (0.0, 0.2775)),
        (1.0, 10, (0.7225, 1.0)),
        (1.0, 1, (0.2065, 1.0)),
    ],
)
def test_wilsons_interval(share: float, count: int, expected: tuple[float, float]):
    assert intervals.wilson_interval(share, count) == pytest.approx(expected, abs=5e-5)


def test_the_half_interval_is_students():
    # Student's t with 2 degrees of freedom: 4.303.
    values = pd.Series([1.0, 2.0, 4.0])
    assert intervals.half_interval(values) == pytest.approx(4.30265 * values.std() / 3**0.5, rel=1e-5)
    assert math.isnan(intervals.half_interval(values[:1]))
    with_missing = pd.concat([values, pd.Series([math.nan])])
    assert intervals.half_interval(with_missing) == intervals.half_interval(values)


@pytest.mark.parametrize("ties", [True, False])
def test_the_metrics_of_a_resample_equal_those_of_its_rows(ties: bool):
    logits, labels = rows(ties)
    (counts,) = intervals.draw_rows(400, 5, seed=1)
    assert counts.shape == (5, 400)
    assert (counts.sum(1) == 400).all()
    one = resampled.ResampledBinary(1 / (1 + np.exp(-logits[:, 0])), labels[:, 0])(counts)
    two = resampled.ResampledRegression(logits[:, 1], labels[:, 1])(counts)
    for k in range(5):
        index = np.repeat(np.arange(400), counts[k])
        drawn = TaskMetrics([BINARY, NUMBER])("x", torch.tensor(logits[index]), torch.tensor(labels[index]))
        for name in Binary.METRICS:
            assert one[name][k] == pytest.approx(drawn[f"x/one/{name}"].item(), abs=1e-6)
        for name in Regression.METRICS:
            assert two[name][k] == pytest.approx(drawn[f"x/two/{name}"].item(), rel=1e-5)


def test_the_intervals_cover_the_true_value_in_about_95_percent():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        p = random.random(300)
        y = (random.random(300) < p).astype(np.float32)
        found = intervals.bootstrap_intervals([BINARY], p[:, None], y[:, None], 200, seed)["one"]
        low, high = found["log_loss"]
        inside += low <= 0.5 <= high  # the expected log loss for p ~ U(0, 1) and y ~ Bernoulli(p)
    assert 88 <= inside <= 100


def test_replicas_are_evaluated_on_the_same_draws():
    logits, labels = rows()
    p = 1 / (1 + np.exp(-logits))
    alone = intervals.bootstrap_intervals([BINARY], p[:, :1], labels[:, :1], 70)
    twice = intervals.bootstrap_intervals([BINARY], np.stack([p, p])[..., :1], labels[:, :1], 70)
    assert alone == twice


def test_an_offset_does_not_change_regression_metrics():
    random = np.random.default_rng(0)
    label = random.choice([-1.0, 1.0], 400)
    number = label + random.choice([-0.5, 0.5], 400)
    counts = next(iter(intervals.draw_rows(400, 20, 0)))
    near = resampled.ResampledRegression(number, label)(counts)
    for offset in (1e5, 1e7):
        far = resampled.ResampledRegression(
            (number + offset).astype(np.float32), (label + offset).astype(np.float32)
        )(counts)
        if offset == 1e5:
            np.testing.assert_allclose(far["r2"], near["r2"], atol=1e-6)
        exact = resampled.ResampledRegression(number + offset, label + offset)(counts)
        np.testing.assert_allclose(exact["r2"], near["r2"], atol=1e-6)
        np.testing.assert_allclose(exact["mse"], near["mse"], atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0.1, 1e7])
def test_equal_labels_have_no_r2(label: float):
    labels = np.full((50, 1), label, np.float32)
    found = intervals.bootstrap_intervals([NUMBER], labels + np.arange(50)[:, None], labels, 30)["two"]
    assert np.isnan(found["r2"]).all()
    assert found["mse"][0] > 0
    counts = np.array([[3, 0, 0], [1, 1, 1]])  # the first resample has only one label
    r2 = resampled.ResampledRegression(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.3, 0.7]))(counts)["r2"]
    assert np.isnan(r2).tolist() == [True, False]


@pytest.mark.filterwarnings("error")
def test_probabilities_of_0_and_1_and_a_single_class():
    p, y = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0, 1.0])
    found = resampled.ResampledBinary(p, y)(np.array([[1, 1, 0, 0], [1, 1, 1, 1], [2, 0, 2, 0]]))
    assert found["log_loss"].tolist() == [0, 50, 50]
    assert found["auroc"][:2].tolist() == [1, 0.5]
    assert np.isnan(found["auroc"][2])
    assert np.isnan(found["average_precision"][2])


def test_draws_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch):
    (counts,) = intervals.draw_rows(400, 5, seed=1)
    monkeypatch.setattr(intervals, "CHUNK_SIZE", 37)
    chunks = list(intervals.draw_rows(400, 5, seed=1))
    assert [len(chunk) for chunk in chunks] == [1] * 5
    assert np.array_equal(np.concatenate(chunks), counts)


@pytest.mark.filterwarnings("error")
def test_resamples_of_all_kinds_with_unknown_labels():
    logits, labels, known = rows_of_all_kinds(200)
    predicted = torch.cat(
        [task.predict(logits[:, own]) for task, own in zip(KINDS, logit_columns(KINDS), strict=True)], 1
    )
    (counts,) = intervals.draw_rows(200, 4, seed=1)
    for i, (task, own) in enumerate(zip(KINDS, logit_columns(KINDS), strict=True)):
        kept = known[:, i].numpy()
        measure = task.resampled_metrics(predicted[kept][:, own].numpy(), labels[kept, i].numpy())
        values = measure(counts[:, kept])
        assert list(values) == list(task.METRICS)
        for k in range(4):
            index = torch.from_numpy(np.repeat(np.arange(200), counts[k]))
            drawn = TaskMetrics(KINDS)("x", logits[index], labels[index], known[index])
            for name, value in values.items():
                assert value[k] == pytest.approx(drawn[f"x/{task.name}/{name}"].item(), abs=1e-6)
    found = intervals.bootstrap_intervals(KINDS, predicted.numpy(), labels.numpy(), 50, 0, known.numpy())
    point = TaskMetrics(KINDS)("x", logits, labels, known)
    for task in KINDS:
        for name, (low, high) in found[task.name].items():
            if name != "calibration_error":  # it is larger in resamples, whose rows repeat
                assert low < point[f"x/{task.name}/{name}"] < high
    none = intervals.bootstrap_intervals(
        KINDS, predicted.numpy(), labels.numpy(), 5, 0, np.zeros((200, 4), bool)
    )
    assert all(np.isnan(pair).all() for values in none.values() for pair in values.values())


@pytest.mark.filterwarnings("error")
def test_a_resample_with_one_class_has_no_area():
    measure = resampled.ResampledMulticlass(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))
    found = measure(np.array([[1, 1], [2, 0]]))
    assert np.isnan(found["auroc"]).tolist() == [False, True]
    assert found["accuracy"].tolist() == [1, 1]
