"""The paper's synthetic regression tasks (section 3.2), whose relatedness is a number.

R replicas, N rows, D inputs, T tasks, M sines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmoe.arguments import check_finite, check_integers
from mmoe.data.encode import Rows
from mmoe.errors import UserError

Device = torch.device | str
WEIGHTS, SINES = -3, -4  # numbers of what is drawn once, apart from those of blocks of rows


@dataclass(frozen=True)
class Generator:
    """Rows of x ~ N(0, I) and y_k = w_k . x + sum_i sin(a_i w_k . x + b_i) + e_k (equations 2 to 4).

    The weights of two tasks have the cosine p and the norm c: w_k = c (L u)_k, with orthonormal u and the
    Cholesky factor L of the matrix of cosines. For two tasks that is the paper's w_1 = c u_1,
    w_2 = c (p u_1 + sqrt(1 - p^2) u_2).

    Args:
        p: cosine between the weights of any two tasks.
        c: norm of the weights.
        m: number of sines.
        a: their m frequencies, shared by the tasks; None draws them from N(0, 1) for each seed.
        b: their m phases, likewise.
        d: D.
        tasks: T.
        noise_variance: of e_k.

    Raises:
        UserError: an argument is outside its range.
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
            raise UserError(f"p={self.p}: must be a cosine in [-1, 1]")
        if self.p < -1 / (self.tasks - 1):
            raise UserError(
                f"p={self.p}: {self.tasks} tasks cannot all have cosines below {-1 / (self.tasks - 1):.4g}"
            )
        if self.d < self.tasks:
            raise UserError(f"d={self.d}: must be at least the number of tasks, {self.tasks}")
        for name, values in (("a", self.a), ("b", self.b)):
            if values is not None and len(values) != self.m:
                raise UserError(f"{name}={list(values)}: must have m={self.m} values")
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values or ()):
                raise UserError(f"{name}={list(values or ())}: must be finite numbers")

    def directions(self, seed: int) -> Tensor:
        """Orthonormal u [T, D] of a seed, float64."""
        drawn = torch.randn(self.d, self.tasks, generator=_generator(seed, WEIGHTS), dtype=torch.float64)
        columns: Tensor = torch.linalg.qr(drawn).Q
        return columns.T

    def weights(self, seed: int) -> Tensor:
        """Task weights w [T, D] of a seed, float64."""
        mixing = torch.zeros(self.tasks, self.tasks, dtype=torch.float64)
        for k in range(self.tasks):  # Cholesky's algorithm, which p = 1 does not stop
            rest = 1 - mixing[k, :k].square().sum().item()
            mixing[k, k] = math.sqrt(max(rest, 0.0))
            if rest > 1e-12:
                mixing[k + 1 :, k] = (self.p - mixing[k + 1 :, :k] @ mixing[k, :k]) / mixing[k, k]
        return self.c * mixing @ self.directions(seed)

    def sines(self, seed: int) -> tuple[Tensor, Tensor]:
        """Frequencies and phases of a seed, [M] each."""
        drawn = torch.randn(2, self.m, generator=_generator(seed, SINES))
        a, b = (drawn[i] if v is None else torch.tensor(v) for i, v in enumerate((self.a, self.b)))
        return a.float(), b.float()

    def rows(self, seeds: Sequence[int], block: int, num_rows: int, device: Device = "cpu") -> Rows:
        """Block number `block` of each seed: the same on every call, whatever the other seeds are.

        Returns:
            Rows with x as numerics [R, N, D] and labels [R, N, T], on the device that they are drawn on;
            without R where there is one seed.
        """
        x = torch.empty(len(seeds), num_rows, self.d, device=device)
        noise = torch.empty(len(seeds), num_rows, self.tasks, device=device)
        for r, seed in enumerate(seeds):
            generator = _generator(seed, block, device)
            x[r].normal_(generator=generator)
            noise[r].normal_(generator=generator)
        weights = torch.stack([self.weights(seed) for seed in seeds]).to(x)
        a, b = (torch.stack(part).to(x) for part in zip(*map(self.sines, seeds), strict=True))  # [R, M]
        labels = self.signal(torch.einsum("rnd,rtd->rnt", x, weights), a, b)
        labels += math.sqrt(self.noise_variance) * noise
        rows = Rows(x.new_empty(len(seeds), num_rows, 0, dtype=torch.int16), x, labels)
        return rows if len(seeds) > 1 else Rows(*(tensor[0] for tensor in rows))

    @staticmethod
    def signal(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Labels without noise, s + sum_i sin(a_i s + b_i) of s [R, N, T], with a and b [R, M]."""
        angles = torch.einsum("rnt,rm->rntm", s, a) + b[:, None, None]
        return s + angles.sin().sum(-1)


def _generator(seed: int, block: int, device: Device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed((seed * 1_000_003 + block) % 2**63)
