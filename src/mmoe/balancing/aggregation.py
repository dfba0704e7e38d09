"""Strategies that combine the tasks' gradients: TorchJD's aggregators.

The rows of the matrix J [T, P] are the tasks' gradients, with zeros in the entries that one task alone
reaches. An aggregator returns one vector [P]. For most, it is w J with weights w [T].

T tasks, K tasks with a gradient other than 0, P entries of the parameters.
"""

import warnings
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmoe.balancing.strategies import Strategy, from_library
from mmoe.checks.arguments import check_finite, check_integers
from mmoe.errors import ArgumentError

SCALE_MODES = ("min", "median", "rmse")


class Aggregation(Strategy):
    """Combines gradients by a TorchJD aggregator.

    A task whose gradient is 0, such as one without a known label in the batch, is left out. A strategy with a
    memory then reuses its weights of the last step that had all tasks, because its memory needs all of them.

    Args:
        num_tasks, seed: see `Strategy`.
        name: the class in `torchjd.aggregation`.
        options: arguments of the class.

    Attributes:
        has_memory: whether its weights depend on earlier steps.
    """

    aggregates = True
    has_memory: ClassVar[bool] = False

    def __init__(self, num_tasks: int, seed: int, name: str, **options: Any) -> None:
        super().__init__(num_tasks, seed)
        self.function: Any = from_library(self, "aggregation", name, **options)
        self._classes: Any = import_module("torchjd.aggregation")
        self.weights = torch.ones(num_tasks)  # of the last step that had all tasks

    def combine(self, jacobian: Tensor, gramian: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the gradients J [T, P]. Their Gramian J J^T [T, T] is given on the CPU in float64.

        Returns:
            The vector [P], and the weights [T] of the tasks: NaN for a task whose gradient is 0. If the
            vector is no weighted sum, they are those of the nearest weighted sum.
        """
        has_gradient = gramian.diagonal() > 0  # [T]; also False for NaN
        rows = has_gradient.nonzero().flatten()
        is_complete = len(rows) == self.num_tasks
        weights = torch.full((self.num_tasks,), torch.nan)
        with self.own_randomness(jacobian.device):
            is_finite = bool(gramian.isfinite().all())  # if not, the check at the end of the epoch reports it
            if is_finite and not is_complete and self.has_memory:
                weights[rows] = self.weights[rows]
                return self.weights.to(jacobian) @ jacobian, weights
            if not is_finite or len(rows) < 2:
                weights[rows] = 1.0
                return jacobian.sum(0), weights
            if is_complete:
                vector, weights = self._combine(jacobian, gramian)
                self.weights = weights
            else:
                chosen = jacobian.index_select(0, rows.to(jacobian.device))  # [K, P]
                vector, weights[rows] = self._combine(chosen, gramian[rows][:, rows])
        return vector, weights

    def _combine(self, jacobian: Tensor, gramian: Tensor) -> tuple[Tensor, Tensor]:
        """The vector [P] and the weights [K] of gradients [K, P] other than 0."""
        if isinstance(self.function, self._classes.GramianWeightedAggregator):
            # TorchJD treats small Gramians as 0, so it gets the Gramian divided by its trace.
            weights = self.function.gramian_weighting(gramian / gramian.diagonal().sum())
        elif isinstance(self.function, self._classes.WeightedAggregator):
            weights = self.function.weighting(jacobian)
        else:
            vector = self.function(jacobian)
            weights = torch.linalg.pinv(gramian) @ (jacobian @ vector).to(gramian)
            return vector, weights.float()
        return weights.to(jacobian) @ jacobian, weights.float().cpu()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weights = state["weights"].clone()


class PCGrad(Aggregation):
    """Projects each task's gradient onto the normal plane of those it conflicts with, and adds the results.

    Yu et al., Gradient Surgery, NeurIPS 2020, algorithm 1. The order of the other tasks is random.
    """

    is_random = True

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks, seed, "PCGrad")


class CAGrad(Aggregation):
    """Conflict-averse gradient: the vector near the mean gradient that most improves the worst task.

    Liu et al., NeurIPS 2021, algorithm 1.

    Args:
        num_tasks, seed: see `Strategy`.
        c: the radius around the mean gradient, as a share of its norm. 0 gives the mean gradient.

    Raises:
        ArgumentError: `c` is negative.
    """

    def __init__(self, num_tasks: int, seed: int = 0, c: float = 0.4) -> None:
        check_finite(0, c=c)
        super().__init__(num_tasks, seed, "CAGrad", c=c)


class NashMTL(Aggregation):
    """Nash bargaining: weights w with G w = 1 / w for the Gramian G divided by its norm.

    Navon et al., ICML 2022, algorithm 1. The solver starts at the last solution, or at w = 1
    in the first step. If it fails, as it does where an entry of G w is 0, the last solution stays.

    Args:
        num_tasks, seed: see `Strategy`.
        max_norm: the vector is scaled down to this norm; 0: never.
        update_weights_every: steps between two computations of the weights.
        optim_niter: the largest number of iterations of the solver.

    Raises:
        ArgumentError: an argument is outside its range.
    """

    has_memory = True

    def __init__(
        self,
        num_tasks: int,
        seed: int = 0,
        max_norm: float = 1.0,
        update_weights_every: int = 1,
        optim_niter: int = 20,
    ) -> None:
        check_finite(0, max_norm=max_norm)
        check_integers(1, update_weights_every=update_weights_every, optim_niter=optim_niter)
        options = {"max_norm": max_norm, "update_weights_every": update_weights_every}
        super().__init__(num_tasks, seed, "NashMTL", n_tasks=num_tasks, optim_niter=optim_niter, **options)

    def _combine(self, jacobian: Tensor, gramian: Tensor) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cvxpy warns that later solves will not be faster than the first
            return super()._combine(jacobian, gramian)

    def state_dict(self) -> dict[str, Any]:
        weighting = self.function.weighting
        return super().state_dict() | {
            "step": weighting.step,
            "solution": torch.from_numpy(weighting.prvs_alpha),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        weighting = self.function.weighting
        weighting.step, weighting.prvs_alpha = state["step"], state["solution"].clone().numpy()
        if weighting.step:  # TorchJD builds its problem only in the first step
            weighting._init_optim_problem()


class IMTLG(Aggregation):
    """IMTL-G: weights that sum to 1 and make the projections onto all tasks' gradients equally long.

    Liu et al., Towards Impartial Multi-task Learning, ICLR 2021, section 3.1.
    """

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks, seed, "IMTLG")


class MGDA(Aggregation):
    """Multiple-gradient descent: the shortest vector among the weighted means of the tasks' gradients.

    Desideri, 2012; Sener and Koltun, NeurIPS 2018, algorithm 2 (Frank-Wolfe).

    Args:
        num_tasks, seed: see `Strategy`.
        epsilon: above 0; the solver ends when a step is below it.
        max_iters: the largest number of steps of the solver.

    Raises:
        ArgumentError: an argument is outside its range.
    """

    def __init__(self, num_tasks: int, seed: int = 0, epsilon: float = 1e-3, max_iters: int = 100) -> None:
        check_finite(1e-12, epsilon=epsilon)
        check_integers(1, max_iters=max_iters)
        super().__init__(num_tasks, seed, "MGDA", epsilon=epsilon, max_iters=max_iters)


class AlignedMTL(Aggregation):
    """Aligned-MTL: the mean of the gradients, with their principal components scaled to one length.

    Senushkin et al., CVPR 2023, algorithm 1.

    Args:
        num_tasks, seed: see `Strategy`.
        scale_mode: the length: that of the shortest component (`min`), of the `median` one, or the root mean
            square of all lengths (`rmse`).

    Raises:
        ArgumentError: `scale_mode` is unknown.
    """

    def __init__(self, num_tasks: int, seed: int = 0, scale_mode: str = "min") -> None:
        if scale_mode not in SCALE_MODES:
            raise ArgumentError(f"scale_mode={scale_mode}: must be one of {', '.join(SCALE_MODES)}")
        super().__init__(num_tasks, seed, "AlignedMTL", scale_mode=scale_mode)


class FairGrad(Aggregation):
    """Fair resource allocation: weights w with G w = w^(-1/alpha) for the Gramian G.

    Ban and Ji, ICML 2024, equation 4.

    Args:
        num_tasks, seed: see `Strategy`.
        alpha: 0 gives the mean gradient, and 1 proportional fairness; larger values favour the worst task.

    Raises:
        ArgumentError: `alpha` is negative.
    """

    def __init__(self, num_tasks: int, seed: int = 0, alpha: float = 1.0) -> None:
        check_finite(0, alpha=alpha)
        super().__init__(num_tasks, seed, "FairGrad", alpha=alpha)
        self.alpha = alpha

    def _combine(self, jacobian: Tensor, gramian: Tensor) -> tuple[Tensor, Tensor]:
        # The solver stops too early for small gradients, so it gets the Gramian divided by its trace.
        vector, weights = super()._combine(jacobian, gramian)
        factor = float(gramian.diagonal().sum()) ** (-self.alpha / (1 + self.alpha))
        return vector * factor, weights * factor


class GradDrop(Aggregation):
    """Gradient sign dropout: each entry keeps only the positive or only the negative gradients, at random.

    Chen et al., Just Pick a Sign, NeurIPS 2020, algorithm 1, lines 10 to 15, without leaks.
    """

    is_random = True

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks, seed, "GradDrop")


class GradVac(Aggregation):
    """Gradient vaccine: turns a gradient towards another one if their cosine is below its running mean.

    Wang et al., ICLR 2021, algorithm 1 with one group of all shared weights.

    Args:
        num_tasks, seed: see `Strategy`.
        beta: the weight of the newest cosine in the running mean, from 0 to 1.

    Raises:
        ArgumentError: `beta` is outside its range.
    """

    is_random = True
    has_memory = True

    def __init__(self, num_tasks: int, seed: int = 0, beta: float = 0.5) -> None:
        check_finite(0, beta=beta)
        if beta > 1:
            raise ArgumentError(f"beta={beta}: must be at most 1")
        super().__init__(num_tasks, seed, "GradVac", beta=beta)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"cosines": self.function.gramian_weighting._phi_t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["cosines"] is not None:
            weighting, cosines = self.function.gramian_weighting, state["cosines"].clone()
            weighting._phi_t, weighting._state_key = cosines, (self.num_tasks, cosines.dtype)


class UPGrad(Aggregation):
    """Projects each task's gradient onto the cone of vectors that conflict with no task, and averages.

    Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024, section 3.1.
    """

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks, seed, "UPGrad")


class ConFIG(Aggregation):
    """Conflict-free gradient: the direction that has the same cosine with all tasks' gradients.

    Liu et al., ConFIG, ICLR 2025, equation 2.
    """

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks, seed, "ConFIG")


class RandomGradientWeights(Aggregation):
    """Random weights of the gradients: the softmax of normal numbers. Lin et al., TMLR 2022, algorithm 2."""

    is_random = True

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks, seed, "Random")
