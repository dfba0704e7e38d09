"""A search over hyper-parameters: Optuna's study in a journal file, to be stopped, resumed and shared."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback, StudyDirection
from optuna.trial import Trial, TrialState

from mmoe.atomic import write

GROUPS = ("data", "features", "inputs", "model", "experiment")


def space_of(spaces: DictConfig, model: str) -> dict[str, dict[str, Any]]:
    """Ranges by configuration key: those of all methods and those of `model`, where null takes one away.

    Raises:
        ValueError: there are none for this method, or a range is not one.
    """
    if model not in spaces:
        raise ValueError(f"space.{model}: must be there; the methods with a space are {', '.join(spaces)}")
    space: dict[str, dict[str, Any]] = {}
    for part in ("all", model):
        space |= OmegaConf.to_container(spaces[part])  # type: ignore[arg-type]
    space = {key: given for key, given in space.items() if given is not None}
    for key, given in space.items():
        keys = given.keys() if isinstance(given, dict) else set()
        known = {"low", "high"} <= keys <= {"low", "high", "log", "width"}
        if not known or given["low"] > given["high"]:
            raise ValueError(f"space.{model}.{key}={given}: must be {{low, high}}, with log or width at will")
    return space


def suggest(trial: Trial, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of one trial, by configuration key."""
    values: dict[str, Any] = {}
    for key, given in space.items():
        low, high, log = given["low"], given["high"], given.get("log", False)
        if isinstance(low, int) and isinstance(high, int):
            values[key] = trial.suggest_int(key, low, high, log=log)
        else:
            values[key] = trial.suggest_float(key, low, high, log=log)
    return listed(values, space)


def listed(values: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values with each width as a list of one layer."""
    return {key: [value] if space[key].get("width") else value for key, value in values.items()}


def apply(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A copy of the configuration with these values."""
    changed = config.copy()
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    return changed


def choices_of(choices: Mapping[str, Any]) -> dict[str, str]:
    """The config groups that tell one search from another."""
    return {group: choices[group] for group in GROUPS}


def open_study(
    folder: Path, sampler: str, seed: int, direction: str, described: Mapping[str, Any]
) -> optuna.Study:
    """The study of the journal in `folder`, made if it is not there; `direction` is maximize or minimize.

    Raises:
        ValueError: an unknown sampler, or the journal is of another search.
    """
    samplers: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "gp": optuna.samplers.GPSampler,
        "tpe": optuna.samplers.TPESampler,
    }
    if sampler not in samplers:
        raise ValueError(f"sampler={sampler}: must be one of {', '.join(samplers)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    try:
        study = optuna.load_study(storage=storage, study_name="tune")
    except KeyError:
        towards = StudyDirection[direction.upper()]
        study = optuna.create_study(
            storage=storage, study_name="tune", direction=towards, load_if_exists=True
        )
    # A process that joins a study must not draw what another drew.
    study.sampler = samplers[sampler](seed=seed + len(study.trials))
    stored = study.user_attrs
    for key, value in described.items():
        text = json.dumps(value, sort_keys=True)
        if key not in stored:
            study.set_user_attr(key, text)
        elif stored[key] != text:
            raise ValueError(f"{folder}/journal.log: must be of the same {key}; it is of {stored[key]}")
    return study


def run(study: optuna.Study, objective: Callable[[Trial], float], trials: int) -> None:
    """Run trials until `trials` have ended well, in this and all other processes."""
    done = sum(trial.state == TrialState.COMPLETE for trial in study.trials)
    if done < trials:
        stop = MaxTrialsCallback(trials, states=(TrialState.COMPLETE,))
        study.optimize(objective, n_trials=trials - done, callbacks=[stop], show_progress_bar=True)


def write_experiment(
    folder: Path, study: optuna.Study, space: Mapping[str, Mapping[str, Any]], choices: Mapping[str, str]
) -> Path:
    """Write the best trial as `folder`/experiment/NAME.yaml, for `--config-dir` and `experiment=`."""
    tree = OmegaConf.create({})
    for key, value in listed(study.best_params, space).items():
        OmegaConf.update(tree, key, value)
    groups = [{f"override /{group}": choices[group]} for group in GROUPS if group != "experiment"]
    head = OmegaConf.to_yaml(OmegaConf.create({"defaults": [choices["experiment"], *groups, "_self_"]}))
    path = folder / "experiment" / f"tuned_{choices['data']}_{choices['model']}.yaml"
    text = (
        f"# @package _global_\n# Best of {len(study.trials)} trials: {study.best_value:.4f}.\n"
        f"{head}\n{OmegaConf.to_yaml(tree)}"
    )
    write(path, lambda scratch: scratch.write_text(text, "utf-8"))
    return path
