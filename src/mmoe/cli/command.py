"""How a command with a Hydra configuration starts: its configuration, run folder and imports."""

import gc
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mmoe import CONF_DIR
from mmoe.atomic import remove_if_empty
from mmoe.cli.config_files import check_config_files, check_groups
from mmoe.cli.exits import (
    composition_errors_on_one_line,
    disk_message,
    errors_on_one_line,
    exit_with,
    hydra_prints_bugs,
)
from mmoe.cli.hidden_warnings import useless_warnings_hidden
from mmoe.cli.sweep_jobs import is_sweep_job, run_job
from mmoe.errors import DISK_ERROR, USER_ERROR, UserError, did_you_mean, is_disk_error

DEFAULT_EXPERIMENT = "census"  # that of conf/train.yaml
TRAINING_COMMANDS = ("train", "tune")  # their configurations build objects, which take further arguments


def run_name(overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    """The folder of a run below runs/: the experiment, or the data set if no experiment was chosen."""
    data, experiment = choices.get("data"), choices.get("experiment")
    is_chosen = experiment != DEFAULT_EXPERIMENT or any(o.startswith("experiment=") for o in overrides)
    return str(experiment if experiment and (is_chosen or not data) else data)


OmegaConf.register_new_resolver("run_name", run_name, replace=True)  # for hydra.run.dir in conf/train.yaml


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorate a command's `main`, which gets the configuration that Hydra composes from the command line.

    Errors are printed on one line, and the run folder is removed if it stays empty.
    """
    accepts_new_keys = config_name in TRAINING_COMMANDS

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @wraps(main)
        def run(config: DictConfig) -> None:
            logging.captureWarnings(True)

            def job() -> None:
                try:
                    with errors_on_one_line():
                        if not accepts_new_keys:
                            check_settings(config, config_name)
                        import_libraries()
                        main(config)
                except BaseException:
                    remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
                    raise

            with useless_warnings_hidden(), hydra_prints_bugs():
                if is_sweep_job():
                    run_job(job)
                else:
                    job()

        compose = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)

        @wraps(main)
        def check_and_run() -> None:
            with errors_on_one_line():
                check_groups(sys.argv[1:])
                check_config_files(sys.argv[1:])
            with composition_errors_on_one_line(accepts_new_keys):
                compose(run)()

        return check_and_run

    return decorate


def import_libraries() -> None:
    """Import what the commands need, without garbage collections, which take a quarter of the time.

    The import is here, and not at the top of the file, so that --help does not wait for torch.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    import mmoe.run  # noqa: F401

    gc.freeze()  # later collections skip these objects
    gc.enable()


def check_settings(config: DictConfig, config_name: str) -> None:
    """Raise UserError for a setting that is not in the command's configuration file.

    `data` is an exception, because `Run.evaluate` knows what may stand there.
    """
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"{config_name}.yaml"), resolve=False)
    for key in map(str, config):
        _check_key(key, "", own)
        if key != "data" and isinstance(own[key], dict):
            for name in map(str, config[key]):
                _check_key(name, f"{key}.", own[key])


def _check_key(key: str, prefix: str, known: Mapping[str, Any]) -> None:
    if key not in known:
        raise UserError(f"{prefix}{key}: no such setting{did_you_mean(key, list(known))}")


class MakeRunFolder(Callback):
    """Make the run folder before Hydra does, so that a read-only disk gives a one-line error."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._make("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._make("hydra.sweep.dir", config.hydra.sweep.dir)

    def _make(self, key: str, folder: str) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_error(error):
                exit_with(DISK_ERROR, disk_message(error))
            exit_with(USER_ERROR, f"{key}={folder}: cannot be a folder ({error.strerror})")
