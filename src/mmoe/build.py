"""Build objects from a composed configuration, and decide which classes a run folder may build."""

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from numbers import Integral, Real
from types import UnionType
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, MLFlowLogger, WandbLogger
from pytorch_lightning.plugins import Precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from torch import nn

from mmoe.balancing.strategies import Strategy as Balancing
from mmoe.errors import ArgumentError, UserError, first_line, is_number

# Loggers that need a package, and mmoe's extra that installs it. Lightning's message names another package.
EXTRAS: Mapping[Any, str] = {MLFlowLogger: "mlflow", WandbLogger: "wandb"}
# Classes that a run folder may build without `trust`: they are defined in the package on the left, and they
# subclass one of the bases on the right.
ALLOWED_BASES: dict[str, tuple[type, ...]] = {
    "mmoe": (nn.Module, pl.LightningDataModule, torch.optim.Optimizer, Callback, Logger, Profiler, Balancing),
    "torch": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    "pytorch_lightning": (pl.Trainer, Callback, Logger, Profiler, Strategy, Precision),
}
# The check imports only modules with these names, because an import runs code.
ALLOWED_PREFIXES = ("mmoe.", "torch.optim.", "pytorch_lightning.")


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Build the object that `config` describes at a dotted `key`, with additional `arguments`.

    `_target_`, `_args_`, `_partial_` and `_recursive_` mean the same as in Hydra's `instantiate`. Lists and
    dicts are plain, so that no OmegaConf object gets into a module or a checkpoint.

    Raises:
        UserError: the configuration is wrong.
    """
    node = OmegaConf.select(config, key, throw_on_missing=True)
    is_node = isinstance(node, DictConfig)
    plain: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if is_node else node
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(f"{key}={plain}: must have a _target_, the class to build")
    return _construct(plain, key, arguments)


def _construct(node: Any, key: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Build the objects that plain dicts and lists describe, the inner ones first."""
    if isinstance(node, list):
        return [_construct(child, f"{key}[{i}]") for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    nested = node.get("_recursive_", True)
    values = {
        name: _construct(child, f"{key}.{name}") if nested else child
        for name, child in node.items()
        if name not in ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
    }
    if "_target_" not in node:
        return values
    target = locate(node["_target_"], key)
    values |= arguments or {}
    args = node.get("_args_", [])
    if not isinstance(args, list):
        raise UserError(f"{key}._args_={args}: must be a list")
    make = partial(target, *(_construct(args, f"{key}._args_") if nested else args), **values)
    is_partial = node.get("_partial_", False)
    _check_signature(make, key, is_partial)
    return make if is_partial else _call(make, key)


def locate(target: Any, key: str) -> Any:
    """The class or function that a `_target_` names; errors call the place of the target `key`."""
    try:
        found = hydra.utils.get_object(str(target))
    except (ImportError, ValueError) as error:
        why = first_line(error.__cause__ or error)
        raise UserError(f"{key}: Error locating target {target!r} ({why})") from error
    if not callable(found):
        raise UserError(f"{key}._target_={target}: must be a class or a function")
    return found


def _check_signature(make: "partial[Any]", key: str, is_partial: bool) -> None:
    """Raise UserError if the target has no such argument, or a required argument is missing."""
    try:
        signature = inspect.signature(make.func)
    except ValueError:  # a builtin without a signature
        return
    accepted = signature.parameters.values()
    names = [p.name for p in accepted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted)
    for name in make.keywords:
        if name not in names and not takes_any:
            nearest = get_close_matches(name, names, 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise UserError(f"{key}: got an unexpected keyword argument '{name}'{hint}")
    try:
        (signature.bind_partial if is_partial else signature.bind)(*make.args, **make.keywords)
    except TypeError as error:
        raise UserError(f"{key}: {error}") from error


def _call(make: "partial[Any]", key: str) -> Any:
    """Call the target. A wrong argument raises UserError; a bug in our code keeps its traceback."""
    package = make.func.__module__.split(".")[0]
    try:
        made = make()
    except ArgumentError as error:
        raise UserError(f"{key}.{error}") from error
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except Exception as error:
        if package == "mmoe":
            _check_types(make, key)
        if isinstance(error, ImportError) and make.func in EXTRAS:
            raise UserError(f"{key}: needs pip install 'mmoe[{EXTRAS[make.func]}]'") from error
        # torch and Lightning refuse arguments with many types of exceptions.
        is_library = package in ("torch", "pytorch_lightning", "lightning")
        if not is_library or isinstance(error, OSError | MemoryError):
            raise
        raise UserError(f"{key}: {first_line(error)}") from error
    if package == "mmoe":  # after the call, because a constructor's own message says more
        _check_types(make, key)  # our code may accept a wrong type and fail later
    return made


def _check_types(make: "partial[Any]", key: str) -> None:
    """Raise UserError if an argument's type differs from the target's annotation."""
    hints = typing.get_type_hints(make.func if inspect.isfunction(make.func) else make.func.__init__)
    for name, value in make.keywords.items():
        if name in hints and not _matches_type(value, hints[name]):
            raise UserError(f"{key}.{name}={value}: must be {_describe_type(hints[name])}")


def _describe_type(hint: Any) -> str:
    """Put a type annotation into words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(_describe_type(part) for part in inner)
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping to {_describe_type(inner[1])}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {_describe_type(inner[0])}"
    if origin is Callable:
        return "a class to build, with _partial_: true"
    simple = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    return simple.get(hint, getattr(hint, "__name__", str(hint)))


def _matches_type(value: Any, hint: Any) -> bool:
    """Whether a plain value matches a type annotation. Any value matches an unknown annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_matches_type(value, part) for part in inner)
    if hint is float:
        return is_number(value, Real)
    if hint is int:
        return is_number(value, Integral)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if origin is Callable:
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_matches_type(v, inner[1]) for v in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_matches_type(v, inner[0]) for v in value)
    return True


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
