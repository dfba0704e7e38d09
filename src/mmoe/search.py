"""A search over hyper-parameters: Optuna's study in a journal file, to be stopped, resumed and shared."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import TrialPruned as TrialPruned
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import MaxTrialsCallback, StudyDirection
from optuna.trial import Trial, TrialState

from mmoe.atomic import write
from mmoe.errors import UserError

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
GROUPS = ("data", "features", "inputs", "model", "experiment")
RECORD = b'{"op_code":'  # what each line of a journal starts with


def space_of(spaces: DictConfig, model: str) -> dict[str, dict[str, Any]]:
    """Ranges by configuration key: those of all methods and those of `model`, where null takes one away.

    Raises:
        UserError: there are none for this method, or a range is not one.
    """
    if model not in spaces:
        raise UserError(f"space.{model}: must be there; the methods with a space are {', '.join(spaces)}")
    space: dict[str, dict[str, Any]] = {}
    for part in ("all", model):
        space |= OmegaConf.to_container(spaces[part])  # type: ignore[arg-type]
    space = {key: given for key, given in space.items() if given is not None}
    for key, given in space.items():
        keys = given.keys() if isinstance(given, dict) else set()
        known = {"low", "high"} <= keys <= {"low", "high", "log", "width"}
        if not known or given["low"] > given["high"]:
            raise UserError(f"space.{model}.{key}={given}: must be {{low, high}}, with log or width at will")
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

    A last line that a killed process left unfinished is removed: the next line would be appended to it.

    Raises:
        UserError: an unknown sampler, `folder` cannot be a directory, or the journal is damaged or of another
            search.
    """
    samplers: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "gp": optuna.samplers.GPSampler,
        "tpe": optuna.samplers.TPESampler,
    }
    if sampler not in samplers:
        raise UserError(f"sampler={sampler}: must be one of {', '.join(samplers)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"folder={folder}: must be a directory ({error.strerror})") from None
    journal = folder / "journal.log"
    if journal.exists() and not journal.is_file():
        raise UserError(f"{journal}: must be a file")
    # Optuna's lock is a link to the journal. Only an absolute one can be followed from every folder: Optuna
    # does so to see that the lock is old, and waits for ever where it cannot.
    lock = JournalFileSymlinkLock(str(journal.absolute()))
    towards = StudyDirection[direction.upper()]
    try:
        storage = JournalStorage(JournalFileBackend(str(journal.absolute()), lock))
        known = {study.study_name: study for study in storage.get_all_studies()}
        study = optuna.load_study(storage=storage, study_name="tune") if "tune" in known else None
        drawn = len(study.trials) if study else 0
    except OSError:
        raise
    except Exception as error:  # Optuna checks nothing: a damaged line may raise anything
        raise UserError(f"{journal}: must be a whole journal of Optuna ({type(error).__name__})") from error
    if known and not study:
        raise UserError(f"{journal}: must hold the study tune, holds {', '.join(known)}")
    if study and study.directions != [towards]:
        names = [found.name.lower() for found in study.directions]
        raise UserError(f"{journal}: must be of the same direction, {direction}; it is of {', '.join(names)}")
    texts = {key: json.dumps(value, sort_keys=True) for key, value in described.items()}
    stored = study.user_attrs if study else {}
    for key, text in texts.items():
        if stored.get(key, text) != text:
            raise UserError(f"{journal}: must be of the same {key}; it is of {stored[key]}")
    _remove_unfinished_line(journal, lock)
    study = study or optuna.create_study(
        storage=storage, study_name="tune", direction=towards, load_if_exists=True
    )
    # A process that joins a study must not draw what another drew.
    study.sampler = samplers[sampler](seed=seed + drawn)
    for key in texts.keys() - stored.keys():
        study.set_user_attr(key, texts[key])
    return study


def _remove_unfinished_line(journal: Path, lock: JournalFileSymlinkLock) -> None:
    """Remove the last line where a killed process left it without its end.

    Raises:
        UserError: the last line is neither a record nor the start of one; Optuna ignores it until it writes
            another line.
    """
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            last = b""
            for line in file:
                last = line
            if last.endswith(b"\n"):
                is_good = _is_record(last)
            else:
                is_good = last.startswith(RECORD) or RECORD.startswith(last)
            if not is_good:
                raise UserError(
                    f"{journal}: must be a whole journal of Optuna; its last line is not a record"
                )
            if not last.endswith(b"\n"):
                file.seek(-len(last), os.SEEK_END)
                file.truncate()
    finally:
        lock.release()


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def tried(study: optuna.Study) -> int:
    """How many trials have ended: well, or pruned because training diverged."""
    return sum(trial.state in ENDED for trial in study.trials)


def run(study: optuna.Study, objective: Callable[[Trial], float], trials: int) -> None:
    """Run trials until `trials` have ended, in this and all other processes.

    Raises:
        UserError: training diverged in all of them.
    """
    done = tried(study)
    if done < trials:
        stop = MaxTrialsCallback(trials, states=ENDED)
        study.optimize(objective, n_trials=trials - done, callbacks=[stop], show_progress_bar=True)
    if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
        raise UserError(f"training diverged in all {tried(study)} trials: lower the rates of space")


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
