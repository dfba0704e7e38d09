"""Compose the configuration of a training in Python, as Hydra does for the command line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmoe import CONF_DIR
from mmoe.cli.config_files import check_groups
from mmoe.cli.exits import composition_message, error_message
from mmoe.errors import UserError


@contextmanager
def composed(data: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> Iterator[DictConfig]:
    """Compose the configuration of a training, and tell Hydra's resolvers about the run folder.

    Args:
        data: the configuration of the data module, which becomes `data`.
        folder: the run folder.
        overrides: as on the command line.

    Raises:
        UserError: an override is invalid. Some are only found while the caller uses the configuration.
    """
    check_groups(overrides)
    before = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "data" / "table.yaml"
        path.parent.mkdir()
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(data))), "utf-8")
        given = [f"hydra.searchpath=[file://{temporary}]", "data=table", *overrides]
        try:
            with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
                config = compose("train", given, return_hydra_config=True)
        except CompactHydraException as error:
            raise UserError(composition_message(error)) from None
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir = str(folder.absolute())
    try:
        HydraConfig.instance().set_config(config)
        OmegaConf.set_struct(config, False)
        yield OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    except OmegaConfBaseException as error:
        message = error_message(error)
        if message is None:
            raise
        raise UserError(message) from None
    finally:
        HydraConfig.instance().cfg = before
