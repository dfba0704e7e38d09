"""Generate the rows of the paper's synthetic regression tasks (section 3.2).

R replicas, N rows, D inputs, T tasks, M sines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from mmoe.checks.arguments import check_finite, check_integers
from mmoe.data.batch import Batch
from mmoe.errors import ArgumentError

Device = torch.device | str
# A block of rows is drawn from the random stream with the block's number, which is at least -2. The task
# weights and the sines are drawn from streams with these numbers.
WEIGHTS, SINES = -3, -4


@dataclass(frozen=True)
class RowGenerator:
    """Generator of x ~ N(0, I) and y_k = w_k . x + sum_i sin(a_i w_k . x + b_i) + e_k (equations 2 to 4).

    The weights of any two tasks have the cosine p and the norm c: w_k = c (L u)_k. Here u is orthonormal, and
    L is the Cholesky factor of the matrix of cosines. For two tasks this is the paper's w_1 = c u_1,
    w_2 = c (p u_1 + sqrt(1 - p^2) u_2).

    Args:
        p: cosine between the weights of any two tasks.
        c: norm of the weights.
        m: number of sines, M.
        a: M frequencies of the sines, shared by the tasks; None draws them from N(0, 1) for each seed.
        b: M phases of the sines, shared by the tasks; None draws them from N(0, 1) for each seed.
        d: number of inputs, D.
        tasks: number of tasks, T.
        noise_variance: variance of the noise e_k.

    Raises:
        ArgumentError: an argument is outside its range.
    """

    p: float
    c: float = 1.0
    m: int = 10
    a: Sequence[float] | None = None
    b: Sequence[float] | None = None
    d: int = 100
    tasks: int = 2
    noise_variance: float = 0.01

    def __post_init__(self) -> None:
        check_integers(2, d=self.d, tasks=self.tasks)
        check_integers(0, m=self.m)
        check_finite(0, c=self.c, noise_variance=self.noise_variance)
        check_finite(-1, p=self.p)
        if self.p > 1:
            raise ArgumentError(f"p={self.p}: must be a cosine in [-1, 1]")
        lowest = -1 / (self.tasks - 1)
        if self.p < lowest:
            what = f"the lowest cosine that all pairs of {self.tasks} tasks can have"
            raise ArgumentError(f"p={self.p}: must be at least {lowest:.4g}, {what}")
        if self.d < self.tasks:
            raise ArgumentError(f"d={self.d}: must be at least the number of tasks, {self.tasks}")
        for name, values in (("a", self.a), ("b", self.b)):
            if values is not None and len(values) != self.m:
                raise ArgumentError(f"{name}={list(values)}: must have m={self.m} values")
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values or ()):
                raise ArgumentError(f"{name}={list(values or ())}: must be finite numbers")

    def directions(self, seed: int) -> Tensor:
        """The orthonormal directions u [T, D] of a seed, float64."""
        drawn = torch.randn(self.d, self.tasks, generator=_random(seed, WEIGHTS), dtype=torch.float64)
        columns: Tensor = torch.linalg.qr(drawn).Q
        return columns.T

    def weights(self, seed: int) -> Tensor:
        """The task weights w [T, D] of a seed, float64."""
        mixing = torch.zeros(self.tasks, self.tasks, dtype=torch.float64)
        for k in range(self.tasks):  # Cholesky's algorithm; torch's would fail at p = 1
            rest = 1 - mixing[k, :k].square().sum().item()
            mixing[k, k] = math.sqrt(max(rest, 0.0))
            if rest > 1e-12:
                mixing[k + 1 :, k] = (self.p - mixing[k + 1 :, :k] @ mixing[k, :k]) / mixing[k, k]
        return self.c * mixing @ self.directions(seed)

    def sines(self, seed: int) -> tuple[Tensor, Tensor]:
        """The frequencies and the phases of a seed, [M] each."""
        drawn = torch.randn(2, self.m, generator=_random(seed, SINES))
        a, b = (drawn[i] if v is None else torch.tensor(v) for i, v in enumerate((self.a, self.b)))
        return a.float(), b.float()

    def rows(self, seeds: Sequence[int], block: int, num_rows: int, device: Device = "cpu") -> Batch:
        """Draw block number `block` for each of R seeds.

        A seed's block does not depend on earlier calls or on the other seeds. A different kind of device
        draws different numbers.

        Returns:
            Rows with numbers x [R, N, D] and labels [R, N, T], without the dimension R if there is one seed.
        """
        x = torch.empty(len(seeds), num_rows, self.d, device=device)
        noise = torch.empty(len(seeds), num_rows, self.tasks, device=device)
        for r, seed in enumerate(seeds):
            random = _random(seed, block, device)
            x[r].normal_(generator=random)
            noise[r].normal_(generator=random)
        weights = torch.stack([self.weights(seed) for seed in seeds]).to(x)
        a, b = (torch.stack(part).to(x) for part in zip(*map(self.sines, seeds), strict=True))  # [R, M]
        s = torch.einsum("rnd,rtd->rnt", x, weights)
        angles = torch.einsum("rnt,rm->rntm", s, a) + b[:, None, None]
        labels = s + angles.sin().sum(-1) + math.sqrt(self.noise_variance) * noise
        rows = Batch(x.new_empty(len(seeds), num_rows, 0, dtype=torch.int16), x, labels)
        return rows if len(seeds) > 1 else rows.map(itemgetter(0))


def _random(seed: int, block: int, device: Device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed((seed * 1_000_003 + block) % 2**63)
