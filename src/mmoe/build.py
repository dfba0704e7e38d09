"""Build objects from a composed configuration.

The module `mmoe.training.trust` decides which classes a run folder may build.
"""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from types import UnionType
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger

from mmoe.checks.arguments import is_number
from mmoe.errors import ArgumentError, UserError, did_you_mean, first_line

# Loggers that need a package, and mmoe's extra that installs it. Lightning's message names another package.
EXTRAS: Mapping[Any, str] = {MLFlowLogger: "mlflow", WandbLogger: "wandb"}


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
    """The class or function that a `_target_` names. Error messages begin with `key`, the target's place."""
    try:
        found = hydra.utils.get_object(str(target))
    except (ImportError, ValueError) as error:
        why = first_line(error.__cause__ or error)
        raise UserError(f"{key}: Error locating target {target!r} ({why})") from error
    if not callable(found):
        raise UserError(f"{key}._target_={target}: must be a class or a function")
    return found


def _check_signature(make: "partial[Any]", key: str, is_partial: bool) -> None:
    """Raise UserError if the target does not take one of the arguments, or a required one is missing."""
    try:
        signature = inspect.signature(make.func)
    except ValueError:  # a builtin without a signature
        return
    accepted = signature.parameters.values()
    names = [p.name for p in accepted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted)
    for name in make.keywords:
        if name not in names and not takes_any:
            hint = did_you_mean(name, names)
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
        # torch and Lightning raise many types of exceptions for a wrong argument.
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
