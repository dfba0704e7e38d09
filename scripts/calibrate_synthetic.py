"""Choose the constants c, m, a and b of the synthetic labels, which the paper leaves open.

usage: python scripts/calibrate_synthetic.py

The correlation of two labels has a closed form for every cosine p. A least-squares fit matches it to values
that were read from the paper's figure 2. Many constants fit within the reading precision, and some have
sines so fast that no model learns them in the paper's 10,000 steps. So the fit has an upper bound for the
frequencies, which rises until one or two sines match all values within the reading precision.
"""

from collections.abc import Sequence

import numpy as np
from report_text import table
from scipy.optimize import least_squares
from synthetic_figures import PUBLISHED_CORRELATION

NOISE_VARIANCE = 0.01
PRECISION = 0.02  # the error of a value that is read from the figure
NUM_STARTS = 20  # random starting points of each fit


def covariance(p: np.ndarray, c: float, a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """Covariance of two tasks' labels without noise, at each p.

    The weighted inputs s_1 and s_2 are normal with variance c^2 and covariance p c^2. Products of
    sines are differences of cosines, with E cos(u) = cos(mean) exp(-variance / 2), and E sin(u) is alike.
    Products of a sine and s follow from Stein's lemma.
    """
    p = np.asarray(p)[:, None, None]
    a, b = np.asarray(a), np.asarray(b)
    damping = np.exp(-((a * c) ** 2) / 2)
    first, second = a[:, None], a[None]
    both = c**2 * (first**2 + second**2) / 2
    cross = c**2 * first * second * p
    minus, plus = b[:, None] - b[None], b[:, None] + b[None]
    sines = (np.cos(minus) * np.exp(cross - both) - np.cos(plus) * np.exp(-cross - both)) / 2
    means = np.sin(b) * damping
    linear = c**2 * (1 + 2 * (a * np.cos(b) * damping).sum())
    return linear * p[:, 0, 0] + (sines - means[:, None] * means).sum((1, 2))


def correlation(p: Sequence[float], c: float, a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """Pearson correlation of two tasks' labels at each p."""
    (variance,) = covariance(np.ones(1), c, a, b)
    return covariance(np.asarray(p), c, a, b) / (variance + NOISE_VARIANCE)


def fit(m: int, bound: float) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Residuals, c, a and b of the best fit with m sines whose frequencies c a are below `bound`."""
    p, published = (np.array(values) for values in zip(*PUBLISHED_CORRELATION.items(), strict=True))
    random = np.random.default_rng(0)

    def residuals(x: np.ndarray) -> np.ndarray:
        return correlation(p, x[0], x[1 : m + 1] / x[0], x[m + 1 :]) - published

    low, high = [0.05, *[0.1] * m, *[0.0] * m], [2.0, *[bound] * m, *[2 * np.pi] * m]
    starts = (random.uniform(low, high) for _ in range(NUM_STARTS))
    best = min(
        (least_squares(residuals, x, bounds=(low, high)) for x in starts), key=lambda found: found.cost
    )
    x = best.x
    return best.fun, float(x[0]), x[1 : m + 1] / x[0], x[m + 1 :]


def main() -> None:
    """Print the fits for rising bounds, up to the first that is precise enough."""
    rows = []
    for bound in np.arange(4.0, 7.01, 0.5):
        errors = []
        for m in (1, 2):
            residuals, c, a, b = fit(m, bound)
            rms, largest = np.sqrt(np.mean(residuals**2)), np.abs(residuals).max()
            shown = [" ".join(f"{value:.3f}" for value in values) for values in (a, b)]
            rows.append([f"{bound:.1f}", str(m), f"{rms:.4f}", f"{largest:.3f}", f"{c:.4f}", *shown])
            errors.append(largest)
        if min(errors) <= PRECISION:
            break
    print(table(["bound on c a", "m", "rms residual", "largest residual", "c", "a", "b"], rows))


if __name__ == "__main__":
    main()
