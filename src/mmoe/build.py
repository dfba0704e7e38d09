"""Build objects from a composed configuration."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import UnionType
from typing import Any

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from mmoe.data.schema import Schema
from mmoe.errors import ArgumentError, UserError, first_line
from mmoe.models.ensemble import Ensemble
from mmoe.models.inputs import use_dense_inputs
from mmoe.models.network import Network

# Settings of the callbacks `best` and `early_stopping` that are allowed with replicas.
REPLICA_BEST_KEYS = (
    "_target_", "monitor", "mode", "dirpath", "filename", "enable_version_counter", "verbose"
)  # fmt: skip
REPLICA_STOP_KEYS = (
    "_target_", "monitor", "mode", "patience", "min_delta", "check_on_train_epoch_end", "strict", "verbose"
)  # fmt: skip


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
    try:
        target = hydra.utils.get_object(str(node["_target_"]))
    except (ImportError, ValueError) as error:
        why = first_line(error.__cause__ or error)
        raise UserError(f"{key}: Error locating target {node['_target_']!r} ({why})") from error
    if not callable(target):
        raise UserError(f"{key}._target_={node['_target_']}: must be a class or a function")
    values |= arguments or {}
    args = node.get("_args_", [])
    if not isinstance(args, list):
        raise UserError(f"{key}._args_={args}: must be a list")
    make = partial(target, *_construct(args, key), **values)
    is_partial = node.get("_partial_", False)
    _check_signature(make, key, is_partial)
    return make if is_partial else _call(make, key)


def _check_signature(make: "partial[Any]", key: str, is_partial: bool) -> None:
    """Raise UserError if the target has no such argument, or a required argument is missing."""
    try:
        signature = inspect.signature(make.func)
    except ValueError:  # a builtin without a signature
        return
    try:
        (signature.bind_partial if is_partial else signature.bind)(*make.args, **make.keywords)
    except TypeError as error:
        raise UserError(f"{key}: {error}") from error


def _call(make: "partial[Any]", key: str) -> Any:
    """Call the target. A wrong argument raises UserError; a bug in our code keeps its traceback."""
    is_ours = make.func.__module__.split(".")[0] == "mmoe"
    try:
        made = make()
    except ArgumentError as error:
        raise UserError(f"{key}.{error}") from error
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except Exception as error:
        if is_ours:
            _check_types(make, key)
        if not _is_library(make.func) or isinstance(error, OSError | MemoryError):
            raise
        raise UserError(f"{key}: {first_line(error)}") from error
    if is_ours:
        _check_types(make, key)  # our code may accept a wrong type and fail later
    return made


def _is_library(target: Any) -> bool:
    """Whether torch or Lightning defines the target. They reject arguments with many exception types."""
    return target.__module__.split(".")[0] in ("torch", "pytorch_lightning", "lightning")


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
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if origin is Callable:
        return callable(value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_matches_type(v, inner[1]) for v in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_matches_type(v, inner[0]) for v in value)
    return True


def build_network(config: DictConfig, schema: Schema) -> Network:
    """Build a network from `config.inputs` and `config.model`."""
    inputs = build(config, "inputs", schema=schema)
    model = build(config, "model", num_inputs=inputs.num_outputs, num_tasks=len(schema.tasks))
    if (
        isinstance(model, Ensemble)
        and model.averages_probabilities
        and not all(t.is_binary for t in schema.tasks)
    ):
        raise UserError("model.mean=probability: must be logit, because there are regressions")
    return Network(inputs, model)


def build_learner(config: Any, schema: Schema) -> Any:
    """Build the learner for one network, or for `config.replicas` networks with consecutive seeds."""
    learner = _build_uncompiled(config, schema)
    if config.get("compile"):
        use_dense_inputs(learner.objective)
        learner.objective.compile()  # in place, so that parameters keep their names
    return learner


def _build_uncompiled(config: Any, schema: Schema) -> Any:
    objectives = []
    for number in range(config.replicas):
        pl.seed_everything(config.seed + number, verbose=False)
        network = build_network(config, schema)
        objectives.append(build(config, "objective", network=network, tasks=schema.tasks))
    if config.replicas == 1:
        return build(config, "learner", objective=objectives[0])
    replicated = {"learner": {"_target_": "mmoe.training.replica_learner.ReplicaLearner"}}
    config = OmegaConf.merge(config, replicated)
    return build(config, "learner", objectives=objectives, **_replica_selection(config))


def _replica_selection(config: DictConfig) -> dict[str, Any]:
    """Turn the settings of the callbacks `best` and `early_stopping` into arguments of `ReplicaLearner`."""

    def setting(key: str, default: Any) -> Any:
        return OmegaConf.select(config, f"callbacks.{key}", default=default)

    for name, target, known in (
        ("best", "mmoe.training.checkpoint_callbacks.Best", REPLICA_BEST_KEYS),
        ("early_stopping", "pytorch_lightning.callbacks.EarlyStopping", REPLICA_STOP_KEYS),
    ):
        node = OmegaConf.select(config, f"callbacks.{name}") or {}
        for key in node:
            value = OmegaConf.select(config, f"callbacks.{name}._target_") if key == "_target_" else None
            if key not in known or (value and value != target):
                raise UserError(f"callbacks.{name}.{key}: replicas do not have it; leave it out")
    chosen = {
        "best_monitor": setting("best.monitor", config.monitor),
        "best_mode": setting("best.mode", config.get("monitor_mode", "max")),
    }
    if setting("early_stopping", None):
        chosen |= {
            "stop_monitor": setting("early_stopping.monitor", None),
            "stop_mode": setting("early_stopping.mode", "min"),
            "patience": setting("early_stopping.patience", 3),
            "min_delta": setting("early_stopping.min_delta", 0.0),
        }
    return chosen


def build_callbacks(config: DictConfig) -> dict[str, Any]:
    """Build the callbacks by name. `last` comes last, because it may end the training."""
    names = [name for name, callback in (config.callbacks or {}).items() if callback]
    if "best" not in names:
        raise UserError("callbacks.best: must be there, because its checkpoint is tested")
    names.sort(key=lambda name: name == "last")
    return {str(name): build(config, f"callbacks.{name}") for name in names}


def build_loggers(config: DictConfig) -> list[Any]:
    """Build the loggers. `config.logger` is one logger, or a mapping from names to loggers."""
    node = config.get("logger") or {}
    keys = ["logger"] if "_target_" in node else [f"logger.{name}" for name in node if node[name]]
    return [build(config, key) for key in keys]
