"""From a composed configuration to objects, with the configuration's keys in the errors."""

from typing import Any

import hydra
from hydra.errors import InstantiationException
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmoe.data.schema import Schema


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Instantiate `config[key]` with further arguments, which Hydra must not copy or convert.

    Raises:
        ValueError: what the constructor refused, with the key in front of its message.
    """
    try:
        # Plain lists and dicts, so that no OmegaConf object gets into a module or a checkpoint.
        return hydra.utils.instantiate(config[key], _partial_=True, _convert_="all")(**arguments)
    except ValueError as error:  # ours: it begins with the argument's name
        raise ValueError(f"{key}.{error}") from error
    except (TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        raise ValueError(f"{key}: {error}") from error
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ValueError(f"{error.full_key if hasattr(error, 'full_key') else key}: {cause}") from error


def build_network(config: DictConfig, schema: Schema) -> nn.Module:
    """The network that `config.inputs` and `config.model` describe, for the rows of `schema`."""
    from mmoe.models.network import Network

    inputs = build(config, "inputs", schema=schema)
    model = build(config, "model", num_inputs=inputs.num_outputs, num_tasks=len(schema.tasks))
    return Network(inputs, model)


def resolved(config: DictConfig) -> DictConfig:
    """A copy without interpolations."""
    copy = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(copy, DictConfig)
    return copy
