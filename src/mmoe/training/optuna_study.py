"""An Optuna study in a journal file. It can be stopped and resumed, and processes can share it."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner, PercentilePruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import MaxTrialsCallback, StudyDirection
from optuna.trial import Trial, TrialState

from mmoe.errors import UserError

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
RECORD = b'{"op_code":'  # every line of a journal starts with this
SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "gp": optuna.samplers.GPSampler,
    "tpe": optuna.samplers.TPESampler,
}


def open_study(
    folder: Path, sampler: str, prune: float, seed: int, direction: str, identity: Mapping[str, Any]
) -> optuna.Study:
    """Open the study in `folder`/journal.log, or create it.

    `sampler` is a key of `SAMPLERS`. `prune` is a share between 0 and 1: with 0.25, a trial ends early if its
    metric so far is in the worst quarter of the complete trials. `identity` must be equal in all processes
    and sessions of the study.

    Raises:
        UserError: the sampler is unknown, `folder` is not a directory, or the journal is damaged or belongs
            to another search.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler={sampler}: must be one of {', '.join(SAMPLERS)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"folder={folder}: must be a directory ({error.strerror})") from None
    journal = folder / "journal.log"
    if journal.exists() and not journal.is_file():
        raise UserError(f"{journal}: must be a file")
    # Optuna's lock is a symlink to the journal, and Optuna waits forever if it cannot follow the link to see
    # the lock's age. Only an absolute link works from every folder.
    lock = JournalFileSymlinkLock(str(journal.absolute()))
    study_direction = StudyDirection[direction.upper()]
    try:
        storage = JournalStorage(JournalFileBackend(str(journal.absolute()), lock))
        known = {study.study_name: study for study in storage.get_all_studies()}
        study = optuna.load_study(storage=storage, study_name="tune") if "tune" in known else None
        drawn = len(study.trials) if study else 0
    except OSError:
        raise
    except Exception as error:  # Optuna checks nothing, so a damaged line may raise anything
        raise UserError(f"{journal}: damaged, or not a journal of Optuna ({type(error).__name__})") from error
    if known and not study:
        raise UserError(f"{journal}: must hold the study tune; it holds {', '.join(known)}")
    if study and study.directions != [study_direction]:
        found = ", ".join(found.name.lower() for found in study.directions)
        raise UserError(f"{journal}: must have the direction of this search, {direction}; it has {found}")
    texts = {key: json.dumps(value, sort_keys=True) for key, value in identity.items()}
    stored = study.user_attrs if study else {}
    for key, text in texts.items():
        if stored.get(key, text) != text:
            raise UserError(
                f"{journal}: must have the {key} of this search; it has {stored[key]}. Give another folder to"
                " start anew"
            )
    _remove_unfinished_line(journal, lock)
    study = study or optuna.create_study(
        storage=storage, study_name="tune", direction=study_direction, load_if_exists=True
    )
    # The number of trials so far is added to the seed, so that a process that joins draws other values.
    study.sampler = SAMPLERS[sampler](seed=seed + drawn)
    study.pruner = PercentilePruner(100 * (1 - prune)) if prune else NopPruner()
    for key in texts.keys() - stored.keys():
        study.set_user_attr(key, texts[key])
    return study


def _remove_unfinished_line(journal: Path, lock: JournalFileSymlinkLock) -> None:
    """Remove the last line if a killed process left it unfinished; the next record would be appended to it.

    Raises:
        UserError: the last line is neither a record nor the start of one. Optuna notices too late.
    """
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            last = [b"", *file][-1]
            is_finished = last.endswith(b"\n")
            is_start = last.startswith(RECORD) or RECORD.startswith(last)
            if not (_is_record(last) if is_finished else is_start):
                raise UserError(f"{journal}: damaged; its last line is not a record")
            if not is_finished:
                file.seek(-len(last), os.SEEK_END)
                file.truncate()
    finally:
        lock.release()


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def count_ended(study: optuna.Study) -> int:
    """The number of trials that have ended, including trials pruned because training diverged."""
    return sum(trial.state in ENDED for trial in study.trials)


def run_trials(study: optuna.Study, objective: Callable[[Trial], float], trials: int) -> None:
    """Run trials until `trials` have ended, counting those of all processes.

    Raises:
        UserError: training diverged in every trial.
    """
    done = count_ended(study)
    if done < trials:
        stop = MaxTrialsCallback(trials, states=ENDED)
        study.optimize(objective, n_trials=trials - done, callbacks=[stop], show_progress_bar=True)
    if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
        remedy = "lower the learning rates (space.all.learner.optimizer.lr)"
        raise UserError(f"training diverged in all {count_ended(study)} trials; {remedy}")
