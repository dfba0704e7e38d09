"""What all balancing strategies have in common, and the default, which leaves the losses as they are.

T tasks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmoe.checks.arguments import check_integers
from mmoe.errors import UserError


def from_library(strategy: "Strategy", module: str, name: str, **options: Any) -> Any:
    """Build the object `torchjd.<module>.<name>` for a strategy.

    Raises:
        UserError: TorchJD, or the solver that the object needs, is not installed.
    """
    try:
        return getattr(import_module(f"torchjd.{module}"), name)(**options)
    except ImportError as error:
        missing = getattr(error, "name", None) or "a solver"
        raise UserError(f"{strategy.name} needs {missing}: pip install 'mmoe[balance]'") from error


class Strategy:
    """Balances the T tasks of one network.

    Args:
        num_tasks: T.
        seed: seeds the random numbers of the strategy.

    Attributes:
        aggregates: whether it combines the tasks' gradients; otherwise it weighs their losses.
        is_random: whether it draws random numbers.
        needs_positive_losses: whether it needs losses above 0, for example to take their logarithm.
        follows_steps: whether `follow_step` needs the losses after each optimizer step.
        measure_every: for a strategy that weighs losses, the steps between two comparisons of the tasks'
            gradients; 0: no comparison. Others compare them in every step.
    """

    aggregates: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    needs_positive_losses: ClassVar[bool] = False
    follows_steps: ClassVar[bool] = False
    measure_every = 0

    def __init__(self, num_tasks: int, seed: int) -> None:
        self.num_tasks, self.seed = num_tasks, seed
        self.calls = 0

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def acts(self) -> bool:
        """Whether it does anything at all."""
        return True

    @contextmanager
    def own_randomness(self, device: torch.device) -> Iterator[None]:
        """Draw the same random numbers in every process and after a resume, and keep torch's random state.

        It counts the call, because the number of calls is part of the seed.
        """
        seed = self.seed * 1_000_003 + self.calls
        if self.is_random and device.type == "cuda":
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                torch.manual_seed(seed)
                yield
        elif self.is_random:
            state = torch.get_rng_state()
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())  # faster than fork_rng
            try:
                yield
            finally:
                torch.set_rng_state(state)
        else:
            yield
        self.calls += 1

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer learns for the strategy."""
        return []

    def to(self, device: torch.device) -> None:
        """Move tensors to a device."""

    def end_epoch(self) -> None:
        """Note the end of a training epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: tensors and plain values."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class LossWeighting(Strategy):
    """A strategy that weighs the losses of the tasks.

    Args:
        num_tasks, seed: see `Strategy`.
        measure_every: steps between two comparisons of the tasks' gradients, each of which takes one more
            backward pass for each task; 0: no comparison.

    Raises:
        ArgumentError: `measure_every` is negative.
    """

    def __init__(self, num_tasks: int, seed: int, measure_every: int) -> None:
        super().__init__(num_tasks, seed)
        (self.measure_every,) = check_integers(0, measure_every=measure_every)

    def weigh(self, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights [T] for the losses of all processes [T]; a loss of 0 means that no label was known.

        The second output is a loss for `parameters`, if there are any.
        """
        raise NotImplementedError

    def follow_step(self, losses: Tensor) -> None:
        """Take the losses [T] of the same rows after the optimizer's step, if `follows_steps`."""


class Constant(LossWeighting):
    """Constant weights: the `task_weights` of the objective alone.

    Args:
        num_tasks, seed, measure_every: see `LossWeighting`.
    """

    def __init__(self, num_tasks: int, seed: int = 0, measure_every: int = 0) -> None:
        super().__init__(num_tasks, seed, measure_every)

    @property
    def acts(self) -> bool:
        return self.measure_every > 0

    def weigh(self, losses: Tensor) -> tuple[Tensor, None]:
        self.calls += 1
        return torch.ones_like(losses), None
