import numpy as np
import pytest
import torch

from mmoe import bootstrap
from mmoe.data.schema import Task
from mmoe.training.tasks import TaskMetrics

BINARY, NUMBER = Task("one", "c", ("x",)), Task("two", "c", kind="regression")


def rows(ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 2))
    if ties:
        logits = logits.round(1)
    positive = random.random(400) < 1 / (1 + np.exp(-logits[:, 0]))
    return logits, np.stack([positive, logits[:, 1] + random.normal(size=400)], 1).astype(np.float32)


@pytest.mark.parametrize("ties", [True, False])
def test_a_resample_has_the_metrics_of_its_rows(ties: bool):
    logits, labels = rows(ties)
    (counts,) = bootstrap.draws(400, 5, seed=1)
    assert counts.shape == (5, 400)
    assert (counts.sum(1) == 400).all()
    one = bootstrap.Ranking(1 / (1 + np.exp(-logits[:, 0])), labels[:, 0])(counts)
    two = bootstrap.Errors(logits[:, 1], labels[:, 1])(counts)
    for k in range(5):
        index = np.repeat(np.arange(400), counts[k])
        drawn = TaskMetrics([BINARY, NUMBER])("x", torch.tensor(logits[index]), torch.tensor(labels[index]))
        for name in ("auroc", "average_precision", "log_loss"):
            assert one[name][k] == pytest.approx(drawn[f"x/one/{name}"].item(), abs=1e-6)
        for name in ("mse", "r2"):
            assert two[name][k] == pytest.approx(drawn[f"x/two/{name}"].item(), rel=1e-5)


def test_intervals_hold_the_value_and_cover_as_they_should():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        p = random.random(300)
        y = (random.random(300) < p).astype(np.float32)
        found = bootstrap.intervals([BINARY], p[:, None], y[:, None], 200, seed)["one"]
        low, high = found["log_loss"]
        inside += low <= 0.5 <= high  # E of the log loss of p ~ U(0, 1), y ~ p
    assert 88 <= inside <= 100


def test_replicas_share_the_draws():
    logits, labels = rows()
    p = 1 / (1 + np.exp(-logits))
    alone = bootstrap.intervals([BINARY], p[:, :1], labels[:, :1], 70)
    twice = bootstrap.intervals([BINARY], np.stack([p, p])[..., :1], labels[:, :1], 70)
    assert alone == twice


def test_numbers_far_from_zero_have_the_errors_of_centred_ones():
    random = np.random.default_rng(0)
    label = random.choice([-1.0, 1.0], 400)
    number = label + random.choice([-0.5, 0.5], 400)
    counts = next(iter(bootstrap.draws(400, 20, 0)))
    near = bootstrap.Errors(number, label)(counts)
    for offset in (1e5, 1e7):
        far = bootstrap.Errors((number + offset).astype(np.float32), (label + offset).astype(np.float32))(
            counts
        )
        if offset == 1e5:
            np.testing.assert_allclose(far["r2"], near["r2"], atol=1e-6)
        exact = bootstrap.Errors(number + offset, label + offset)(counts)
        np.testing.assert_allclose(exact["r2"], near["r2"], atol=1e-6)
        np.testing.assert_allclose(exact["mse"], near["mse"], atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0.1, 1e7])
def test_equal_labels_have_no_r2(label: float):
    labels = np.full((50, 1), label, np.float32)
    found = bootstrap.intervals([NUMBER], labels + np.arange(50)[:, None], labels, 30)["two"]
    assert np.isnan(found["r2"]).all()
    assert found["mse"][0] > 0
    counts = np.array([[3, 0, 0], [1, 1, 1]])  # the first draw has one label alone
    r2 = bootstrap.Errors(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.3, 0.7]))(counts)["r2"]
    assert np.isnan(r2).tolist() == [True, False]


@pytest.mark.filterwarnings("error")
def test_certain_probabilities_and_one_class():
    p, y = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0, 1.0])
    found = bootstrap.Ranking(p, y)(np.array([[1, 1, 0, 0], [1, 1, 1, 1], [2, 0, 2, 0]]))
    assert found["log_loss"].tolist() == [0, 50, 50]
    assert found["auroc"][:2].tolist() == [1, 0.5]
    assert np.isnan(found["auroc"][2])
    assert np.isnan(found["average_precision"][2])


@pytest.mark.parametrize("ties", [True, False])
def test_parts_of_the_rows_give_the_metrics_of_all(ties: bool, monkeypatch: pytest.MonkeyPatch):
    logits, labels = rows(ties)
    p = 1 / (1 + np.exp(-logits[:, 0]))
    (counts,) = bootstrap.draws(400, 5, seed=1)
    whole = bootstrap.Ranking(p, labels[:, 0])(counts)
    monkeypatch.setattr(bootstrap, "CELLS", 37)
    parts = bootstrap.Ranking(p, labels[:, 0])
    assert len(parts.segments) > 5
    found = parts(counts)
    for name in ("auroc", "average_precision", "log_loss"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-12)
    drawn = np.concatenate(list(bootstrap.draws(400, 5, seed=1)))  # one at a time
    assert np.array_equal(drawn, counts)
