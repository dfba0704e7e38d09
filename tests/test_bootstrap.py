import numpy as np
import pytest
import torch

from mmoe import bootstrap
from mmoe.data.schema import Task
from mmoe.metrics import TaskMetrics

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
    one = bootstrap.classification(1 / (1 + np.exp(-logits[:, 0])), labels[:, 0], counts)
    two = bootstrap.regression(logits[:, 1], labels[:, 1], counts)
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
