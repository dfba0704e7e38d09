"""Our Adam is that of torch, bit for bit, whichever way a step takes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmoe.training.adam import Adam

SHAPES = [(30, 12), (12,), (2, 6, 1)]


def trained(
    kind: Callable[..., torch.optim.Optimizer], prepare: Callable[..., None] | None = None, **options: object
) -> list[Tensor]:
    """Parameters after ten steps; the last of them has no gradient in the first three."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    groups = [{"params": parameters[:1], "lr": 0.02}, {"params": parameters[1:]}]
    optimizer = kind(groups, lr=0.01, fused=True, **options)
    if prepare:
        prepare(optimizer)
    for step in range(10):
        optimizer.zero_grad()
        for parameter in parameters[: 2 if step < 3 else 3]:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        if step == 5:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return parameters


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}, {"amsgrad": True}, {"maximize": True}],
)
def test_steps_are_those_of_torch(options: dict[str, object]):
    torch.testing.assert_close(trained(Adam, **options), trained(torch.optim.Adam, **options), rtol=0, atol=0)


def test_hooks_of_a_step_are_called():
    calls: list[str] = []

    def prepare(optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    torch.testing.assert_close(trained(Adam, prepare), trained(torch.optim.Adam), rtol=0, atol=0)
    assert calls == ["before", "after"] * 10


def test_a_closure_gives_the_gradient_and_the_loss():
    weight = nn.Parameter(torch.ones(3))
    optimizer = Adam([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[0] == 3
    assert losses == sorted(losses, reverse=True)


def test_gradients_are_dropped_or_set_to_zero():
    weight = nn.Parameter(torch.ones(3))
    optimizer = Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad is not None
    assert not weight.grad.any()
    optimizer.zero_grad()
    assert weight.grad is None
