"""Which classes the stored configuration of a run folder may build."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
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

from mmoe.balancing.strategies import Strategy as Balancing
from mmoe.errors import UserError
from mmoe.training.stored_config import read_plain_config

# Classes that a run folder may build without `trust`: they are defined in the package on the left, and they
# subclass one of the bases on the right.
ALLOWED_BASES: dict[str, tuple[type, ...]] = {
    "mmoe": (nn.Module, pl.LightningDataModule, torch.optim.Optimizer, Callback, Logger, Profiler, Balancing),
    "torch": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    "pytorch_lightning": (pl.Trainer, Callback, Logger, Profiler, Strategy, Precision),
}
# The check imports only modules with these names, because an import runs code.
ALLOWED_PREFIXES = ("mmoe.", "torch.optim.", "pytorch_lightning.")


def check_targets(config: Any, trust: Sequence[str] = (), key: str = "config") -> None:
    """Raise UserError if a stored configuration would build a class that is neither allowed nor trusted.

    `config` consists of plain dicts and lists, and errors call it `key`. Anything in the packages or modules
    that `trust` names may be built.
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


def check_folder(folder: Path, parts: Iterable[str], trust: Sequence[str]) -> None:
    """Raise UserError unless a run folder may build the classes in these parts of its configuration."""
    config = read_plain_config(folder)
    for part in parts:
        check_targets(config.get(part), trust, part)


def built_packages(config: DictConfig) -> list[str]:
    """List the packages from which a configuration builds objects."""
    plain = OmegaConf.to_container(config, resolve=False)
    return sorted({str(target).split(".")[0] for _, target in _targets(plain, "config")})


def _hint(target: str) -> str:
    """Suggest a value of `trust`: the package, or only the class if the package is in `ALLOWED_BASES`."""
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
