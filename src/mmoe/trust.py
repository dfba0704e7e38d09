"""Decide which classes a stored configuration may build, because a run folder may come from anybody."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import Precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from torch import nn

from mmoe.errors import UserError

# These are allowed without trust: classes that a package itself defines as subclasses of its bases here.
ALLOWED_BASES: dict[str, tuple[type, ...]] = {
    "mmoe": (nn.Module, pl.LightningDataModule, torch.optim.Optimizer, Callback, Logger, Profiler),
    "torch": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    "pytorch_lightning": (pl.Trainer, Callback, Logger, Profiler, Strategy, Precision),
}
# No other module is imported for the check, because an import runs code.
ALLOWED_PREFIXES = ("mmoe.", "torch.optim.", "pytorch_lightning.")


def check_targets(config: Any, trust: Sequence[str] = (), key: str = "config") -> None:
    """Raise UserError if a stored configuration would build a class that is neither allowed nor trusted.

    Args:
        config: plain dicts and lists.
        trust: names of packages or modules from which anything may be built.
        key: the name of `config` in error messages.
    """
    is_list = isinstance(trust, Sequence) and not isinstance(trust, str)
    if not is_list or not all(isinstance(name, str) for name in trust):
        raise UserError(f"trust={trust}: must be a list of packages")
    for where, target in _targets(config, key):
        is_trusted = any(f"{target}.".startswith(f"{name}.") for name in trust)
        if not is_trusted and not _is_allowed(str(target)):
            raise UserError(
                f"{where}._target_={target}: a run folder may build modules of mmoe, torch's optimizers and"
                f" schedulers, and Lightning's callbacks, loggers and Trainer{_hint(str(target))}"
            )


def packages(config: DictConfig) -> list[str]:
    """List the packages from which a configuration builds objects."""
    plain = OmegaConf.to_container(config, resolve=False)
    return sorted({str(target).split(".")[0] for _, target in _targets(plain, "config")})


def _hint(target: str) -> str:
    """Suggest a value of `trust`: the package, or one class of a library; none for the standard library."""
    package = target.split(".")[0]
    if package in sys.stdlib_module_names:
        return ""
    name = target if package in ALLOWED_BASES else package
    return f"; if you trust this class, give trust=[{name}]"


def _is_allowed(target: str) -> bool:
    if not target.startswith(ALLOWED_PREFIXES):
        return False
    try:
        found: Any = hydra.utils.get_object(target)
    except Exception:  # an import may raise anything
        return False
    package = found.__module__.split(".")[0] if inspect.isclass(found) else None
    return package in ALLOWED_BASES and issubclass(found, ALLOWED_BASES[package])


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of every `_target_` in plain dicts and lists."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}")
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _targets(child, f"{key}[{i}]")
