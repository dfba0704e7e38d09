"""Find the ReLU units of a network that are 0 for all rows."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn


@contextmanager
def dead_units_recorded(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record which ReLU units are 0 in every row that passes through the network inside the block.

    The result has a mask [units...] for each ReLU, by module name. A module that is called twice in a pass
    has a second mask, such as `act (2)`.
    """
    dead: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def record(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        calls[name] += 1
        key = name if calls[name] == 1 else f"{name} ({calls[name]})"
        mask = (output <= 0).all(0)
        dead[key] = dead[key] & mask if key in dead else mask

    relus = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    hooks = [module.register_forward_hook(partial(record, name)) for name, module in relus]
    hooks.append(network.register_forward_pre_hook(lambda *_: calls.clear()))
    try:
        yield dead
    finally:
        for hook in hooks:
            hook.remove()
