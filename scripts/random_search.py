"""Random search: draw settings from a space, and choose those with the best validation metric."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from options import stop

Settings = dict[str, Any]
Space = Mapping[str, Sequence[Any] | Mapping[str, Any]]


def draw(space: Space, random: np.random.Generator) -> Settings:
    """Draw a value for each setting: one of a list, or a number from a range with both ends."""
    settings: Settings = {}
    for name, values in space.items():
        if not isinstance(values, Mapping):
            settings[name] = values[int(random.integers(len(values)))]
            continue
        low, high = values["low"], values["high"]
        is_integer = isinstance(low, int) and isinstance(high, int)
        end = high + 1 if is_integer else high
        if values.get("log"):
            value = math.exp(random.uniform(math.log(low), math.log(end)))
        else:
            value = random.uniform(low, end)
        settings[name] = min(int(value), high) if is_integer else float(value)
    return settings


def search(
    space: Space, trials: int, name: str, evaluate: Callable[[Settings], float], larger_is_better: bool
) -> dict[str, Any]:
    """Evaluate the settings of all trials; `name` seeds the draws.

    Returns:
        The settings, the value and the number of the best trial, and the values of all trials. A trial
        diverged if its value is not finite; None then stands for the value.

    Raises:
        SystemExit: all trials diverged.
    """
    random = np.random.default_rng(list(name.encode()))
    drawn = [draw(space, random) for _ in range(trials)]
    found = [evaluate(settings) for settings in drawn]
    values = [value if math.isfinite(value) else None for value in found]
    ended = [i for i, value in enumerate(found) if math.isfinite(value)]
    if not ended:
        stop(f"trials={trials}: all trials of {name} diverged")
    best = (max if larger_is_better else min)(ended, key=lambda i: found[i])
    return {"settings": drawn[best], "value": values[best], "trial": best, "values": values}
