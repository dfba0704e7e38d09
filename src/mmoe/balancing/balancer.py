"""Apply a strategy in each step of a training, and keep what is logged.

T tasks, R networks (1, or the number of replicas), P entries of the parameters of one network, U the same
tasks again.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from mmoe.balancing.shared_entries import shared_entries
from mmoe.balancing.strategies import Strategy
from mmoe.balancing.task_gradients import TaskGradients


class RunningMean:
    """The mean of tensors of one shape, entry by entry and without NaNs; NaN if an entry is always NaN."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.count: Tensor | None = None

    def add(self, values: Tensor) -> None:
        known = ~values.isnan()
        values = torch.where(known, values, 0.0)
        # After a resume, the sums are on the CPU.
        self.sum = values if self.sum is None else self.sum.to(values.device) + values
        self.count = known.long() if self.count is None else self.count.to(values.device) + known

    def take(self) -> Tensor | None:
        """Return the mean on the CPU, or None if nothing was added, and start again."""
        mean = None if self.sum is None or self.count is None else (self.sum / self.count).cpu()
        self.sum = self.count = None
        return mean


class Balancer:
    """Balances the tasks of R networks, each with a strategy of its own.

    Args:
        strategies: R strategies of one kind.
        network: one of the networks.
        columns: the columns of each task in the logits.
        names: the names of the tasks.
    """

    def __init__(
        self,
        strategies: Sequence[Strategy],
        network: nn.Module,
        columns: Sequence[slice],
        names: Sequence[str],
    ) -> None:
        self.strategies: list[Any] = list(strategies)
        self.names, first = list(names), strategies[0]
        self.aggregates, self.measure_every = first.aggregates, first.measure_every
        self.follows_steps = first.follows_steps
        compares = self.aggregates or self.measure_every > 0
        self.masks = shared_entries(network, columns) if compares else {}
        tables = [n for n, part in network.named_modules() if isinstance(part, nn.Embedding) and part.sparse]
        # Replicas have dense gradients.
        self.sparse = [f"{name}.weight" for name in tables] if len(self.strategies) == 1 else []
        trained = [name for name, p in network.named_parameters() if p.requires_grad]
        # Learned vectors and custom networks have no mask: all tasks share them.
        self._all_masked = set(trained) == set(self.masks)
        self.means = {name: RunningMean() for name in ("weights", "cosines", "conflicting")}
        self._kept: tuple[Tensor, Tensor] | None = None  # the losses [R, T] and penalties for `backward`
        self._gradients: TaskGradients
        self._mean_over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def shares_nothing(self) -> bool:
        """Whether each entry of each parameter is reached by one task at most."""
        return self._all_masked and not any(mask.any() for mask in self.masks.values())

    def start(
        self, parameters: Mapping[str, nn.Parameter], mean_over_processes: Callable[[Tensor], Tensor] | None
    ) -> list[nn.Parameter]:
        """Prepare for a training of these parameters.

        `mean_over_processes` averages a tensor over all processes; None: there is one process.

        Returns:
            The parameters that the optimizer learns for the strategies.
        """
        if mean_over_processes:
            self._mean_over_processes = mean_over_processes
        shared = {f"network.{name}": mask for name, mask in self.masks.items()}
        sparse = [f"network.{name}" for name in self.sparse]
        self._gradients = TaskGradients(parameters, shared, len(self.strategies), sparse)
        for strategy in self.strategies:
            strategy.to(self._gradients.device)
        return self.learned

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters that the optimizer learns for the strategies."""
        return [parameter for strategy in self.strategies for parameter in strategy.parameters()]

    def loss(self, losses: Tensor, penalty: Tensor) -> Tensor:
        """The loss to minimise, [] or [R], for losses of tasks [T] or [R, T] and a penalty [] or [R].

        For a strategy that aggregates, call `backward` of this class instead of that of the loss.
        """
        by_network = losses.view(-1, losses.shape[-1])  # [R, T]
        if self.aggregates:
            self._kept = by_network, penalty
            return losses.sum(-1) + penalty
        if self.measure_every and self.strategies[0].calls % self.measure_every == 0:
            totals = by_network.sum(0).unbind()
            jacobian = self._mean_over_processes(self._gradients.jacobian(totals, keep_graph=True))
            self._compare(self._gradients.shared(jacobian))
        means = self._mean_over_processes(by_network.detach().clone())
        found = [strategy.weigh(values) for strategy, values in zip(self.strategies, means, strict=True)]
        weights = torch.stack([weight for weight, _ in found])  # [R, T]
        self.means["weights"].add(torch.where(means != 0, weights, torch.nan))
        loss: Tensor = (weights.view_as(losses) * losses).sum(-1) + penalty
        learned = [part for _, part in found if part is not None]
        return loss + torch.stack(learned).view_as(loss) if learned else loss

    def backward(self, scale: float) -> None:
        """Add `scale` times the combined gradient to the gradients of the parameters."""
        assert self._kept is not None
        (by_network, penalty), self._kept = self._kept, None
        totals = list(by_network.sum(0).unbind())  # T
        if penalty.requires_grad:
            totals.append(penalty.sum())
        jacobian = self._mean_over_processes(self._gradients.jacobian(totals))  # [T, R, P], or one row more
        total = jacobian.sum(0)  # right for entries that only one task reaches; `put` replaces the others
        matrices = self._gradients.shared(jacobian[: len(self.names)])  # [R, T, P]
        gramians = self._compare(matrices)
        of_penalty = self._gradients.shared(jacobian[-1:])[:, 0] if penalty.requires_grad else None  # [R, P]
        weights = []
        for r, strategy in enumerate(self.strategies):
            vector, weight = strategy.combine(matrices[r], gramians[r])
            if of_penalty is not None:
                vector = vector + of_penalty[r]
            self._gradients.put(total, r, vector)
            weights.append(weight)
        self.means["weights"].add(torch.stack(weights))
        self._gradients.accumulate(total * scale if scale != 1 else total)

    def _compare(self, matrices: Tensor) -> Tensor:
        """Note the cosines of gradients [R, T, P], and return their Gramians [R, T, U]."""
        gramians = torch.bmm(matrices, matrices.transpose(1, 2)).double().cpu()
        norms = gramians.diagonal(dim1=1, dim2=2).sqrt()  # [R, T]
        cosines = gramians / (norms[:, :, None] * norms[:, None, :])  # NaN for a gradient of 0
        self.means["cosines"].add(cosines)
        first, second = torch.triu_indices(cosines.shape[1], cosines.shape[1], offset=1)
        pairs = cosines[:, first, second]
        conflicts = (pairs < 0).any(1).double()
        self.means["conflicting"].add(torch.where(pairs.isnan().all(1), torch.nan, conflicts))
        return gramians

    def follow_step(self, losses: Tensor) -> None:
        """Give the strategies the losses [T] or [R, T] of the same rows after the optimizer's step."""
        by_network = self._mean_over_processes(losses.detach().clone()).view(-1, losses.shape[-1])
        for strategy, values in zip(self.strategies, by_network, strict=True):
            strategy.follow_step(values)

    def end_epoch(self) -> None:
        """Note the end of a training epoch."""
        for strategy in self.strategies:
            strategy.end_epoch()

    def take_statistics(self) -> dict[str, Tensor]:
        """Means since the last call, each [R], by their `logged_names`. Without comparisons, only weights."""
        weights, cosines, conflicting = (mean.take() for mean in self.means.values())
        if weights is None:
            return {}
        values = list(weights.unbind(1))
        if cosines is not None and conflicting is not None:
            pairs = combinations(range(len(self.names)), 2)
            values += [*(cosines[:, i, j] for i, j in pairs), conflicting]
        return dict(zip(self.logged_names, values, strict=False))

    @property
    def logged_names(self) -> list[str]:
        """The names of the statistics that are logged."""
        names = [f"balance/weight/{name}" for name in self.names]
        if self.aggregates or self.measure_every:
            names += [f"balance/cosine/{a}_{b}" for a, b in combinations(self.names, 2)]
            names.append("balance/conflicting")
        return names

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: tensors and plain values."""
        means = {name: (mean.sum, mean.count) for name, mean in self.means.items()}
        return {"strategies": [strategy.state_dict() for strategy in self.strategies], "means": means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for strategy, stored in zip(self.strategies, state["strategies"], strict=True):
            strategy.load_state_dict(stored)
        for name, (total, count) in state["means"].items():
            self.means[name].sum, self.means[name].count = total, count
