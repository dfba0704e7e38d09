"""From a composed configuration to objects, with the configuration's keys in the errors."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.errors import InstantiationException
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from mmoe.data.schema import Schema
from mmoe.models.ensemble import Ensemble
from mmoe.models.inputs import forbid_sums
from mmoe.models.network import Network

TRUSTED = ("mmoe", "torch", "pytorch_lightning", "torchmetrics")


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Instantiate `config[key]` with further arguments, which Hydra must not copy or convert.

    Raises:
        ValueError: what the configuration got wrong, with its key.
    """
    try:
        # Plain lists and dicts, so that no OmegaConf object gets into a module or a checkpoint.
        make = hydra.utils.instantiate(config[key], _partial_=True, _convert_="all")
        inspect.signature(make.func).bind(*make.args, **make.keywords, **arguments)
    except TypeError as error:  # an argument too many or too few
        raise ValueError(f"{key}: {error}") from error
    except InstantiationException as error:
        where = re.search(r"full_key: (\S+)", str(error))
        raise ValueError(f"{where[1] if where else key}: {str(error).splitlines()[0]}") from error
    try:
        return make(**arguments)
    except ValueError as error:
        joint = "." if re.match(r"\w+[.=:]", str(error)) else ": "  # ours begin with the argument's name
        raise ValueError(f"{key}{joint}{error}") from error
    except (AssertionError, ModuleNotFoundError, MisconfigurationException) as error:  # the Trainer's
        raise ValueError(f"{key}: {error or 'an argument is not of its type'}") from error


def build_network(config: DictConfig, schema: Schema) -> Network:
    """The network that `config.inputs` and `config.model` describe, for the rows of `schema`."""
    inputs = build(config, "inputs", schema=schema)
    model = build(config, "model", num_inputs=inputs.num_outputs, num_tasks=len(schema.tasks))
    if isinstance(model, Ensemble) and model.of_probabilities and not all(t.is_binary for t in schema.tasks):
        raise ValueError("model.mean=probability: must be logit, for there are regressions")
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
    config = OmegaConf.merge(config, {"learner": {"_target_": "mmoe.replica_learner.ReplicaLearner"}})
    stop = (config.callbacks or {}).get("early_stopping")
    patience = stop.patience if stop else None
    watched = {"monitor": config.monitor, "mode": config.get("monitor_mode", "max"), "patience": patience}
    return build(config, "learner", objectives=objectives, **watched)


def build_callbacks(config: DictConfig) -> dict[str, Any]:
    """The callbacks by name; replicas keep their best weights and stop by themselves."""
    names = [name for name, callback in (config.callbacks or {}).items() if callback]
    if "best" not in names:
        raise ValueError("callbacks.best: must be there, for its checkpoint is tested")
    own = ("best", "early_stopping") if config.replicas > 1 else ()
    names.sort(key=lambda name: name == "last")  # it may end the training, when the others are done
    return {name: build(config.callbacks, name) for name in names if name not in own}


def check_targets(config: DictConfig) -> None:
    """Raise ValueError if a configuration that was read back could build more than classes we trust.

    Every `_target_` must be a class of mmoe, torch, pytorch_lightning or torchmetrics, or a function
    `datamodule` of mmoe. No module of another package is imported to find that out.
    """
    for key, target in _targets(OmegaConf.to_container(config, resolve=False)):
        root, *_, name = str(target).split(".")
        try:
            found = hydra.utils.get_object(str(target)) if root in TRUSTED else None
        except (ImportError, ValueError):
            found = None
        ours = root == "mmoe" and name == "datamodule" and inspect.isfunction(found)
        if not ours and not (inspect.isclass(found) and found.__module__.split(".")[0] in TRUSTED):
            raise ValueError(f"{key}._target_={target}: must be a class of {', '.join(TRUSTED)}")


def _targets(node: Any, key: str = "config") -> Iterator[tuple[str, Any]]:
    """Key and value of every `_target_` in plain dicts and lists."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}")
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _targets(child, f"{key}[{i}]")
