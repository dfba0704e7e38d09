"""Strategies that weigh losses: TorchJD's scalarizers.

A scalarizer is a function F of the T losses. The weight of a task is the derivative of F by its loss, so the
weighted sum of the losses has the gradient of F. F sees the losses of all processes.

T tasks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmoe.balancing.strategies import LossWeighting, from_library
from mmoe.checks.arguments import check_finite


class Scalarization(LossWeighting):
    """Weighs losses by the derivatives of a TorchJD scalarizer.

    A task without a known label in a batch keeps its last known loss in F.

    Args:
        num_tasks, seed, measure_every: see `LossWeighting`.
        name: the class in `torchjd.scalarization`.
        options: arguments of the class.
    """

    def __init__(self, num_tasks: int, seed: int, measure_every: int, name: str, **options: Any) -> None:
        super().__init__(num_tasks, seed, measure_every)
        self.function: Any = from_library(self, "scalarization", name, **options)
        self.losses = torch.ones(num_tasks)  # the last known loss of each task

    def weigh(self, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        self.losses = self._known(losses)
        own = self.parameters()
        with self.own_randomness(losses.device), torch.enable_grad():
            x = self.losses.clone().requires_grad_()
            value = self.function(x)
            (weights,) = torch.autograd.grad(value, x, retain_graph=bool(own))
        # The difference is 0 and has the gradient of F.
        return weights, value - value.detach() if own else None

    def _known(self, losses: Tensor) -> Tensor:
        return torch.where(losses != 0, losses.float(), self.losses)

    def to(self, device: torch.device) -> None:
        self.function.to(device)
        self.losses = self.losses.to(device)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses = state["losses"].clone()


class _Learned(Scalarization):
    """A scalarizer with parameters that the optimizer learns. With a loss below 0, F has no minimum."""

    needs_positive_losses = True

    def parameters(self) -> list[nn.Parameter]:
        return list(self.function.parameters())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"parameters": [p.detach() for p in self.parameters()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for parameter, value in zip(self.parameters(), state["parameters"], strict=True):
            parameter.data.copy_(value)


class Uncertainty(_Learned):
    """Uncertainty weighting: F = sum_k exp(-s_k) l_k / 2 + s_k / 2 with learned s_k, at first 0.

    Kendall et al., CVPR 2018, section 3. TorchJD uses the factor 1/2 for tasks of all kinds.
    """

    def __init__(self, num_tasks: int, seed: int = 0, measure_every: int = 0) -> None:
        super().__init__(num_tasks, seed, measure_every, "UW", shape=num_tasks)


class IMTLL(_Learned):
    """IMTL-L: F = sum_k exp(s_k) l_k - s_k with learned s_k, at first 0.

    Liu et al., Towards Impartial Multi-task Learning, ICLR 2021, section 3.2.
    """

    def __init__(self, num_tasks: int, seed: int = 0, measure_every: int = 0) -> None:
        super().__init__(num_tasks, seed, measure_every, "IMTLL", shape=num_tasks)


class DWA(Scalarization):
    """Dynamic weight average: the weights are T softmax(r / temperature).

    r_k is the mean loss of the last epoch divided by that of the epoch before. In the first two epochs all
    weights are 1. Liu et al., CVPR 2019, section 3.3.

    Args:
        num_tasks, seed, measure_every: see `LossWeighting`.
        temperature: larger values make the weights more even; above 0.

    Raises:
        ArgumentError: `temperature` is not above 0.
    """

    needs_positive_losses = True

    def __init__(
        self, num_tasks: int, seed: int = 0, measure_every: int = 0, temperature: float = 2.0
    ) -> None:
        check_finite(1e-6, temperature=temperature)
        super().__init__(num_tasks, seed, measure_every, "DWA", temperature=temperature)

    def end_epoch(self) -> None:
        self.function.step()

    def to(self, device: torch.device) -> None:
        super().to(device)
        averages, total = self.function._previous_averages, self.function._loss_sum
        self.function._previous_averages = [average.to(device) for average in averages]
        self.function._loss_sum = None if total is None else total.to(device)

    def state_dict(self) -> dict[str, Any]:
        function = self.function
        return super().state_dict() | {
            "sum": function._loss_sum,
            "batches": function._n_batches,
            "averages": list(function._previous_averages),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.function._loss_sum, self.function._n_batches = state["sum"], state["batches"]
        self.function._previous_averages = list(state["averages"])


class FAMO(Scalarization):
    """Fast adaptive multitask optimization: F = c sum_k z_k log(l_k) with z = softmax(w).

    c makes the weights of the gradients sum to 1. After each optimizer step, w moves so that the tasks whose
    losses fell least get more weight. This takes one more forward pass.

    Liu et al., NeurIPS 2023, algorithm 2.

    Args:
        num_tasks, seed, measure_every: see `LossWeighting`.
        lr, weight_decay: of the Adam that learns w.

    Raises:
        ArgumentError: `lr` or `weight_decay` is negative.
    """

    needs_positive_losses = True
    follows_steps = True

    def __init__(
        self,
        num_tasks: int,
        seed: int = 0,
        measure_every: int = 0,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
    ) -> None:
        check_finite(0, lr=lr, weight_decay=weight_decay)
        options = {"shape": num_tasks, "lr": lr, "weight_decay": weight_decay}
        super().__init__(num_tasks, seed, measure_every, "FAMO", **options)

    def follow_step(self, losses: Tensor) -> None:
        self.function.update(self._known(losses))

    def to(self, device: torch.device) -> None:
        super().to(device)
        for values in self.function._optimizer.state.values() if self.function._optimizer else ():
            values |= {key: value.to(device) for key, value in values.items() if key != "step"}

    def state_dict(self) -> dict[str, Any]:
        optimizer = self.function._optimizer
        return super().state_dict() | {
            "w": self.function._w.detach(),
            "optimizer": optimizer and optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        function = self.function
        function._w.data.copy_(state["w"])
        if state["optimizer"]:
            function._optimizer = torch.optim.Adam([function._w])
            function._optimizer.load_state_dict(state["optimizer"])


class STCH(Scalarization):
    """Smooth Tchebycheff: F = mu log sum_k exp(l_k / (T mu)), a smooth maximum of the losses.

    Lin et al., ICML 2024, definition 2, with equal preferences 1/T and the ideal point 0.

    Args:
        num_tasks, seed, measure_every: see `LossWeighting`.
        mu: smaller values give the task with the largest loss more of the weight; above 0.

    Raises:
        ArgumentError: `mu` is not above 0.
    """

    def __init__(self, num_tasks: int, seed: int = 0, measure_every: int = 0, mu: float = 0.1) -> None:
        check_finite(1e-6, mu=mu)
        super().__init__(num_tasks, seed, measure_every, "STCH", mu=mu)


class GeometricMean(Scalarization):
    """Geometric mean: F = (l_1 ... l_T)^(1/T). Chennupati et al., MultiNet++, CVPR workshops 2019."""

    needs_positive_losses = True

    def __init__(self, num_tasks: int, seed: int = 0, measure_every: int = 0) -> None:
        super().__init__(num_tasks, seed, measure_every, "GeometricMean")


class RandomLossWeights(Scalarization):
    """Random weights: the softmax of normal numbers, drawn in each step. Lin et al., TMLR 2022, section 3."""

    is_random = True

    def __init__(self, num_tasks: int, seed: int = 0, measure_every: int = 0) -> None:
        super().__init__(num_tasks, seed, measure_every, "Random")
