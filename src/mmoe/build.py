"""From a composed configuration to objects, and what a stored configuration may build."""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import UnionType
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

from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.models.ensemble import Ensemble
from mmoe.models.inputs import forbid_sums
from mmoe.models.network import Network

# What a configuration that was read back may build without being trusted: subclasses of these, from here.
BASES: dict[str, tuple[type, ...]] = {
    "mmoe": (nn.Module, pl.LightningDataModule, torch.optim.Optimizer, Callback, Logger, Profiler),
    "torch": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    "pytorch_lightning": (pl.Trainer, Callback, Logger, Profiler, Strategy, Precision),
}
# The settings of two callbacks that replicas follow; the files are theirs alone.
BEST_OF_REPLICAS = ("_target_", "monitor", "mode", "dirpath", "filename", "enable_version_counter", "verbose")
STOP_OF_REPLICAS = (
    "_target_", "monitor", "mode", "patience", "min_delta", "check_on_train_epoch_end", "strict", "verbose"
)  # fmt: skip
# No other module is imported to judge what it has: some run programs.
IMPORTED = ("mmoe.", "torch.optim.", "pytorch_lightning.")


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Make the object that `config` describes under a dotted `key`, with further `arguments`.

    As Hydra's `instantiate`, with plain lists and dicts, so that no OmegaConf object gets into a module or a
    checkpoint. `_target_`, `_args_`, `_partial_` and `_recursive_` mean what they mean there.

    Raises:
        UserError: the configuration is wrong; the message begins with the key.
    """
    node = OmegaConf.select(config, key, throw_on_missing=True)
    is_node = isinstance(node, DictConfig)
    plain: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if is_node else node
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(f"{key}={plain}: must have a _target_, the class to build")
    return _construct(plain, key, arguments)


def _construct(node: Any, key: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Build a node of plain dicts and lists, what is in it first."""
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
    try:
        target = hydra.utils.get_object(str(node["_target_"]))
    except (ImportError, ValueError) as error:
        why = _first_line(error.__cause__ or error)
        raise UserError(f"{key}: Error locating target {node['_target_']!r} ({why})") from error
    if not callable(target):
        raise UserError(f"{key}._target_={node['_target_']}: must be a class or a function")
    values |= arguments or {}
    args = node.get("_args_", [])
    if not isinstance(args, list):
        raise UserError(f"{key}._args_={args}: must be a list")
    make = partial(target, *_construct(args, key), **values)
    is_partial = node.get("_partial_", False)
    _check_names(make, key, is_partial)
    return make if is_partial else _call(make, key)


def _check_names(make: "partial[Any]", key: str, is_partial: bool) -> None:
    """Raise UserError for an argument that the target does not have, or that is lacking."""
    try:
        signature = inspect.signature(make.func)
    except ValueError:  # a builtin without one
        return
    try:
        (signature.bind_partial if is_partial else signature.bind)(*make.args, **make.keywords)
    except TypeError as error:
        raise UserError(f"{key}: {error}") from error


def _call(make: "partial[Any]", key: str) -> Any:
    """Make the object; mistakes in its arguments become a UserError, a bug in our code does not."""
    is_ours = make.func.__module__.split(".")[0] == "mmoe"
    try:
        made = make()
    except UserError as error:
        joint = "." if re.match(r"\w+[.=:]", str(error)) else ": "  # ours begin with the argument's name
        raise UserError(f"{key}{joint}{error}") from error
    except Exception as error:
        if is_ours:
            _check_types(make, key)
        if not _is_a_library(make.func) or isinstance(error, OSError | MemoryError):
            raise
        raise UserError(f"{key}: {_first_line(error)}") from error
    if is_ours:
        _check_types(make, key)  # for what is used later
    return made


def _is_a_library(target: Any) -> bool:
    """Whether it is of the libraries that refuse arguments by exceptions of all kinds, as loggers do."""
    return target.__module__.split(".")[0] in ("torch", "pytorch_lightning", "lightning")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or "an argument is not of its type"


def _check_types(make: "partial[Any]", key: str) -> None:
    """Raise UserError for an argument whose type is not that of the target's annotation."""
    hints = typing.get_type_hints(make.func if inspect.isfunction(make.func) else make.func.__init__)
    for name, value in make.keywords.items():
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"{key}.{name}={value}: must be {_words(hints[name])}")


def _words(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(_words(part) for part in inner)
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping to {_words(inner[1])}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {_words(inner[0])}"
    if origin is Callable:
        return "a class to build, with _partial_: true"
    simple = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    return simple.get(hint, getattr(hint, "__name__", str(hint)))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be what an annotation says; what cannot be judged fits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if origin is Callable:
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    return True


def build_network(config: DictConfig, schema: Schema) -> Network:
    """The network that `config.inputs` and `config.model` describe, for the rows of `schema`."""
    inputs = build(config, "inputs", schema=schema)
    model = build(config, "model", num_inputs=inputs.num_outputs, num_tasks=len(schema.tasks))
    if isinstance(model, Ensemble) and model.of_probabilities and not all(t.is_binary for t in schema.tasks):
        raise UserError("model.mean=probability: must be logit, for there are regressions")
    return Network(inputs, model)


def build_learner(config: Any, schema: Schema) -> Any:
    """The learner of one network, or of `config.replicas`, which are initialised with seeds of their own.

    With `config.compile` its objective goes through torch.compile; names of parameters stay.
    """
    learner = _learner(config, schema)
    if config.get("compile"):
        forbid_sums(learner.objective)
        learner.objective.compile()
    return learner


def _learner(config: Any, schema: Schema) -> Any:
    objectives = []
    for number in range(config.replicas):
        pl.seed_everything(config.seed + number, verbose=False)
        network = build_network(config, schema)
        objectives.append(build(config, "objective", network=network, tasks=schema.tasks))
    if config.replicas == 1:
        return build(config, "learner", objective=objectives[0])
    replicated = {"learner": {"_target_": "mmoe.training.replica_learner.ReplicaLearner"}}
    config = OmegaConf.merge(config, replicated)
    return build(config, "learner", objectives=objectives, **_selection(config))


def _selection(config: DictConfig) -> dict[str, Any]:
    """How replicas choose their best epochs and stop early: what the two callbacks' configurations say.

    Raises:
        UserError: a setting that replicas do not have.
    """

    def given(key: str, default: Any) -> Any:
        return OmegaConf.select(config, f"callbacks.{key}", default=default)

    for name, target, known in (
        ("best", "mmoe.training.checkpoint_callbacks.Best", BEST_OF_REPLICAS),
        ("early_stopping", "pytorch_lightning.callbacks.EarlyStopping", STOP_OF_REPLICAS),
    ):
        node = OmegaConf.select(config, f"callbacks.{name}") or {}
        for key in node:
            value = OmegaConf.select(config, f"callbacks.{name}._target_") if key == "_target_" else None
            if key not in known or (value and value != target):
                raise UserError(f"callbacks.{name}.{key}: replicas do not have it; leave it out")
    chosen = {
        "best_monitor": given("best.monitor", config.monitor),
        "best_mode": given("best.mode", config.get("monitor_mode", "max")),
    }
    if given("early_stopping", None):
        chosen |= {
            "stop_monitor": given("early_stopping.monitor", None),
            "stop_mode": given("early_stopping.mode", "min"),
            "patience": given("early_stopping.patience", 3),
            "min_delta": given("early_stopping.min_delta", 0.0),
        }
    return chosen


def build_callbacks(config: DictConfig) -> dict[str, Any]:
    """The callbacks by name; `last` comes last, for it may end the training when the others are done."""
    names = [name for name, callback in (config.callbacks or {}).items() if callback]
    if "best" not in names:
        raise UserError("callbacks.best: must be there, for its checkpoint is tested")
    names.sort(key=lambda name: name == "last")
    return {str(name): build(config, f"callbacks.{name}") for name in names}


def build_loggers(config: DictConfig) -> list[Any]:
    """The loggers: `config.logger` is one, or has one under each name."""
    node = config.get("logger") or {}
    keys = ["logger"] if "_target_" in node else [f"logger.{name}" for name in node if node[name]]
    return [build(config, key) for key in keys]


def check_targets(config: Any, trust: Sequence[str] = (), key: str = "config") -> None:
    """Raise UserError if a configuration that was read back could build more than it may.

    Every `_target_` must be a subclass of `BASES`, a function `datamodule` of mmoe.data, or from a package
    that is trusted. No module of another package is imported to find that out.

    Args:
        config: plain dicts and lists.
        trust: names of packages or modules that may build anything.
        key: of `config`, for the error.
    """
    if (
        not isinstance(trust, Sequence)
        or isinstance(trust, str)
        or not all(isinstance(n, str) for n in trust)
    ):
        raise UserError(f"trust={trust}: must be a list of packages")
    for where, target in _targets(config, key):
        if not any(f"{target}.".startswith(f"{name}.") for name in trust) and not _is_known(str(target)):
            raise UserError(
                f"{where}._target_={target}: a run folder may build modules of mmoe, torch's optimizers and"
                " schedulers, and Lightning's callbacks, loggers and Trainer; if you trust this class, give"
                f" trust=[{_to_trust(str(target))}]"
            )


def _to_trust(target: str) -> str:
    """What to trust for a target: its package where that is the user's own, else nothing but the target."""
    package = target.split(".")[0]
    return target if package in (*BASES, *sys.stdlib_module_names) else package


def packages(config: DictConfig) -> list[str]:
    """The packages that a configuration builds from."""
    plain = OmegaConf.to_container(config, resolve=False)
    return sorted({str(target).split(".")[0] for _, target in _targets(plain, "config")})


def _is_known(target: str) -> bool:
    if not target.startswith(IMPORTED):
        return False
    try:
        found: Any = hydra.utils.get_object(target)
    except Exception:  # whatever an import may raise
        return False
    if inspect.isfunction(found):
        return found.__module__.startswith("mmoe.data.") and found.__name__ == "datamodule"
    if not inspect.isclass(found) or found.__module__.split(".")[0] not in BASES:
        return False
    return issubclass(found, BASES[found.__module__.split(".")[0]])


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Key and value of every `_target_` in plain dicts and lists."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}")
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _targets(child, f"{key}[{i}]")
