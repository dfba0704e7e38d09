"""Each strategy computes what its paper says, in cases that are worked out by hand here."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mmoe.balancing import aggregation, scalarization
from mmoe.balancing.strategies import Strategy

LN2 = math.log(2)
# Two gradients that conflict: their lengths are 2 and sqrt(2), and their cosine is -1/sqrt(2).
FIRST, SECOND = np.array([2.0, 0.0]), np.array([-1.0, 1.0])
JACOBIAN = np.stack([FIRST, SECOND])
UNIT_SUM = FIRST / 2 + SECOND / math.sqrt(2)  # the direction with the same cosine to both


def softmax(*values: float) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum()


def weights_of(strategy: scalarization.Scalarization, *losses: float) -> Tensor:
    return strategy.weigh(torch.tensor(losses))[0]


def combined(strategy: aggregation.Aggregation, jacobian: np.ndarray = JACOBIAN) -> tuple[Tensor, Tensor]:
    return strategy.combine(
        torch.tensor(jacobian, dtype=torch.float32), torch.tensor(jacobian @ jacobian.T).double()
    )


def assert_near(found: Tensor, expected: Sequence[float] | np.ndarray, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach().double(), torch.tensor(expected).double(), atol=atol, rtol=1e-4)


def test_uncertainty():
    """F = sum of exp(-s) l / 2 + s / 2."""
    strategy = scalarization.Uncertainty(2)
    weights, loss = strategy.weigh(torch.tensor([1.0, 4.0]))
    assert_near(weights, [0.5, 0.5])
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, strategy.parameters())
    assert_near(gradient, [(1 - 1) / 2, (1 - 4) / 2])  # (1 - l) / 2 where s is 0
    strategy.parameters()[0].data.copy_(torch.tensor([0.0, LN2]))
    assert_near(weights_of(strategy, 1, 4), [0.5, 0.25])


def test_imtl_l():
    """F = sum of exp(s) l - s."""
    strategy = scalarization.IMTLL(2)
    weights, loss = strategy.weigh(torch.tensor([1.0, 4.0]))
    assert_near(weights, [1, 1])
    (gradient,) = torch.autograd.grad(loss, strategy.parameters())
    assert_near(gradient, [1 - 1, 4 - 1])
    strategy.parameters()[0].data.copy_(torch.tensor([0.0, LN2]))
    assert_near(weights_of(strategy, 1, 4), [1, 2])


def test_dwa():
    """The weights follow the ratio of the mean losses of the last two epochs."""
    strategy = scalarization.DWA(2, temperature=2.0)
    for epoch in ([(1, 3), (3, 5)], [(0.5, 4), (1.5, 4)]):  # their means: 2 and 4, then 1 and 4
        for losses in epoch:
            assert_near(weights_of(strategy, *losses), [1, 1])
        strategy.end_epoch()
    assert_near(weights_of(strategy, 7, 7), 2 * softmax(0.5 / 2, 1 / 2))


def test_famo():
    """The weights are c z / l; after a step, the logits of z move by Adam's first step, the learning rate."""
    strategy = scalarization.FAMO(2, lr=0.1)
    assert_near(weights_of(strategy, 1, 4), [0.8, 0.2])  # c = 1 / (0.5 / 1 + 0.5 / 4) = 1.6
    strategy.follow_step(torch.tensor([0.5, 4.0]))  # the first loss has halved: its logit falls
    z = softmax(-0.1, 0.1)
    assert_near(weights_of(strategy, 1, 4), z / [1, 4] / (z / [1, 4]).sum())


def test_stch():
    assert_near(weights_of(scalarization.STCH(2, mu=0.5), 1, 4), softmax(1, 4) / 2)


def test_geometric_mean():
    assert_near(weights_of(scalarization.GeometricMean(2), 1, 4), [2 / (2 * 1), 2 / (2 * 4)])


@pytest.mark.parametrize("is_loss", [True, False])
def test_random_weights(is_loss: bool):
    """They are positive and sum to 1, differ between steps, and are the same for one seed."""
    kind = scalarization.RandomLossWeights if is_loss else aggregation.RandomGradientWeights
    state = torch.get_rng_state()

    def draw(strategy: Strategy) -> Tensor:
        return weights_of(strategy, 1, 4) if is_loss else combined(strategy)[1]

    one, same, other = kind(2, seed=1), kind(2, seed=1), kind(2, seed=2)
    first, second = draw(one), draw(one)
    assert first.sum().item() == pytest.approx(1)
    assert (first > 0).all()
    assert not torch.equal(first, second)
    assert torch.equal(draw(same), first)
    assert torch.equal(draw(same), second)
    assert not torch.equal(draw(other), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_task_without_known_labels_keeps_its_last_loss():
    strategy = scalarization.GeometricMean(2)
    weights_of(strategy, 1, 4)
    assert_near(weights_of(strategy, 9, 0), [6 / (2 * 9), 6 / (2 * 4)])


def test_pcgrad():
    """g1 - (g1 g2 / g2 g2) g2 = g1 + g2, and g2 - (g1 g2 / g1 g1) g1 = g2 + g1 / 2."""
    vector, weights = combined(aggregation.PCGrad(2))
    assert_near(vector, (FIRST + SECOND) + (SECOND + FIRST / 2))
    assert_near(weights, [1.5, 2])


def test_upgrad():
    """The mean of the same projections."""
    vector, _ = combined(aggregation.UPGrad(2))
    assert_near(vector, ((FIRST + SECOND) + (SECOND + FIRST / 2)) / 2, atol=1e-3)


def test_mgda():
    """The point of the line between both gradients that is nearest to 0: w1 = g2 (g2 - g1) / |g1 - g2|^2."""
    vector, weights = combined(aggregation.MGDA(2))
    assert_near(weights, [0.4, 0.6])
    assert_near(vector, [0.2, 0.6])


def test_imtl_g():
    """Both gradients have the same length in the result's direction, and the weights sum to 1."""
    vector, weights = combined(aggregation.IMTLG(2))
    expected = np.array([1 / 2, 1 / math.sqrt(2)])
    expected /= expected.sum()
    assert_near(weights, expected)
    assert_near(vector, expected @ JACOBIAN)


def test_config():
    """The direction of UNIT_SUM, as long as the sum of the projections onto it."""
    vector, weights = combined(aggregation.ConFIG(2))
    direction = UNIT_SUM / np.linalg.norm(UNIT_SUM)
    assert_near(vector, ((FIRST + SECOND) @ direction) * direction)
    assert_near(weights @ torch.tensor(JACOBIAN).float(), vector.tolist())


def test_nash_mtl_and_fairgrad():
    """G w = 1 / w has the solution w_k = 1 / (|g_k| sqrt(1 + cosine))."""
    jacobian = np.array([[2, 0], [-0.5, 1]])  # the solver of Nash-MTL starts at w = 1 and needs G w > 0
    gramian, lengths = jacobian @ jacobian.T, np.linalg.norm(jacobian, axis=1)
    solution = 1 / lengths / math.sqrt(1 + gramian[0, 1] / lengths.prod())
    np.testing.assert_allclose(gramian @ solution, 1 / solution)
    for strategy in (aggregation.FairGrad(2, alpha=1.0), aggregation.NashMTL(2, max_norm=0)):
        assert_near(combined(strategy, jacobian)[1], solution, atol=1e-3)
    expected = solution @ jacobian
    vector, _ = combined(aggregation.NashMTL(2, max_norm=1), jacobian)
    assert_near(vector, expected / np.linalg.norm(expected), atol=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad_solves_its_equation_for_small_gradients(alpha: float):
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        gradients = JACOBIAN * scale
        weights = combined(aggregation.FairGrad(2, alpha=alpha), gradients)[1].double().numpy()
        np.testing.assert_allclose(gradients @ gradients.T @ weights, weights ** (-1 / alpha), rtol=1e-3)


def test_fairgrad_with_alpha_0_is_the_mean():
    assert_near(combined(aggregation.FairGrad(2, alpha=0.0))[0], (FIRST + SECOND) / 2)


@pytest.mark.parametrize("c", [0.0, 0.4, 0.8])
def test_cagrad(c: float):
    """g0 + c |g0| g_w / |g_w| with the w that minimises g_w g0 + c |g0| |g_w|, found on a grid."""
    mean, grid = (FIRST + SECOND) / 2, np.linspace(0, 1, 100_001)[:, None]
    candidates = grid * FIRST + (1 - grid) * SECOND
    radius, lengths = c * np.linalg.norm(mean), np.linalg.norm(candidates, axis=1)
    best = np.argmin(candidates @ mean + radius * lengths)
    vector, _ = combined(aggregation.CAGrad(2, c=c))
    assert_near(vector, mean + radius * candidates[best] / lengths[best], atol=2e-3)


@pytest.mark.parametrize(("mode", "chosen"), [("min", np.min), ("rmse", lambda s: math.sqrt((s**2).mean()))])
def test_aligned_mtl(mode: str, chosen: Callable[[np.ndarray], float]):
    """The mean of the rows of J, after all its singular values become one."""
    left, values, right = np.linalg.svd(JACOBIAN)
    vector, _ = combined(aggregation.AlignedMTL(2, scale_mode=mode))
    assert_near(vector, (chosen(values) * left @ right).mean(0))


def test_graddrop():
    """The first entry is 2 with probability (1 + (2 - 1) / (2 + 1)) / 2 = 2/3, else -1; the second is 1."""
    strategy = aggregation.GradDrop(2)
    vectors = torch.stack([combined(strategy)[0] for _ in range(500)])
    assert set(vectors[:, 0].tolist()) == {2.0, -1.0}
    assert (vectors[:, 0] == 2).double().mean().item() == pytest.approx(2 / 3, abs=0.07)
    assert (vectors[:, 1] == 1).all()


def test_gradvac():
    """At first the target is a cosine of 0, as in PCGrad; then it is half the cosine that was seen."""
    strategy = aggregation.GradVac(2, beta=0.5)
    assert_near(combined(strategy)[1], [1.5, 2])
    cosine, target = -math.sqrt(0.5), -math.sqrt(0.5) / 2

    def added(length: float, other: float) -> float:  # equation 4 of the paper
        sines = math.sqrt(1 - cosine**2), math.sqrt(1 - target**2)
        return length * (target * sines[0] - cosine * sines[1]) / (other * sines[1])

    root = math.sqrt(2)
    assert_near(combined(strategy)[1], [1 + added(root, 2), 1 + added(2, root)])


AGGREGATORS: list[type[aggregation.Aggregation]] = [
    aggregation.PCGrad, aggregation.CAGrad, aggregation.NashMTL, aggregation.IMTLG, aggregation.MGDA,
    aggregation.AlignedMTL, aggregation.FairGrad, aggregation.GradDrop, aggregation.GradVac,
    aggregation.UPGrad, aggregation.ConFIG, aggregation.RandomGradientWeights,
]  # fmt: skip


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_hard_cases(kind: type[aggregation.Aggregation]):
    """Three tasks, of which one may be absent; equal, opposite, tiny and huge gradients."""
    strategy = kind(3)
    normal = np.random.default_rng(0).normal(size=(3, 20))
    for jacobian in (
        normal,
        normal * 1e-5,
        normal * 1e5,
        normal[[0, 0, 1]],
        normal[[0, 1, 1]] * [[1], [1], [-1]],
    ):
        vector, weights = combined(strategy, jacobian)
        assert vector.isfinite().all()
        assert weights.isfinite().all()
    vector, weights = combined(strategy, normal * [[1], [0], [1]])
    assert vector.isfinite().all()
    assert weights.isnan().tolist() == [False, True, False]
    vector, weights = combined(strategy, normal * [[1], [0], [0]])
    assert_near(vector, normal[0] * (weights[0].item() if kind.has_memory else 1))
    assert_near(combined(strategy, normal * 0)[0], np.zeros(20))
    assert not combined(strategy, normal * math.nan)[0].isfinite().any()


@pytest.mark.parametrize(
    "kind", [kind for kind in AGGREGATORS if kind not in (aggregation.NashMTL, aggregation.FairGrad)]
)
def test_small_gradients_have_the_weights_of_large_ones(kind: type[aggregation.Aggregation]):
    normal = np.random.default_rng(0).normal(size=(3, 20))
    large, small = combined(kind(3), normal)[1], combined(kind(3), normal * 1e-4)[1]
    torch.testing.assert_close(large, small, atol=1e-3, rtol=1e-3)


def test_a_strategy_without_memory_leaves_an_absent_task_out():
    """The other two tasks get what they would get alone."""
    three = np.stack([FIRST, np.zeros(2), SECOND])
    vector, weights = combined(aggregation.MGDA(3), three)
    assert_near(vector, [0.2, 0.6])
    assert_near(weights[[0, 2]], [0.4, 0.6])
