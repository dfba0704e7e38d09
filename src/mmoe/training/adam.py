"""Adam that spends little Python on a step: docs/performance.md says what that gives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TORCH_STEP = torch.optim.Optimizer.profile_hook_step(torch.optim.Adam.step)


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, fused: the same numbers, with less Python around its kernel.

    The arguments are those of `torch.optim.Adam`. A step for which they are unusual (amsgrad, maximize,
    a rate in a tensor, gradients to unscale, hooks) is left to it.
    """

    def __init__(self, *args: Any, fused: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, fused=fused, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient, after a closure that computes it."""
        if not self.state or not self._is_usual():
            return TORCH_STEP(self, closure)
        with torch.enable_grad():
            loss = closure() if closure else None
        lists = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        states = [[self.state[p] for p in params] for params in lists]
        if all(map(all, states)):
            for group, params, of_params in zip(self.param_groups, lists, states, strict=True):
                self._update(group, params, of_params)
        else:  # a parameter got its first gradient
            TORCH_STEP(self)
        return loss

    # Else torch.optim wraps it, for its hooks and its profiler, which take longer than the update.
    step.hooked = True  # type: ignore[attr-defined]

    def _update(self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            params,
            [parameter.grad for parameter in params],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _is_usual(self) -> bool:
        """Whether the fused kernel alone does the step."""
        usual = all(
            group["fused"]
            and not group["amsgrad"]
            and not group["maximize"]
            and not group.get("decoupled_weight_decay")
            and not isinstance(group["lr"], Tensor)
            for group in self.param_groups
        )
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        return usual and not hooks and getattr(self, "grad_scale", None) is None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        if set_to_none:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            super().zero_grad(set_to_none)
