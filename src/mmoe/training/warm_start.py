"""Start a training from the weights of another run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmoe.errors import UserError
from mmoe.training import checkpoints
from mmoe.training.stored_config import read_config

log = logging.getLogger(__name__)

NUM_SHOWN = 5  # names in a message


def take_weights(learner: Any, run_folder: str) -> None:
    """Copy the weights of another run's best epoch where names and shapes agree, and log what was copied.

    Raises:
        UserError: there is no such run, one of the runs has replicas, or no weight agrees.
    """
    try:
        config = read_config(Path(run_folder))
        (path,) = checkpoints.find(Path(run_folder), "best")
    except UserError as error:
        raise UserError(f"init_from={run_folder}: {error}") from None
    if learner.has_replicas or config.replicas > 1:
        raise UserError(f"init_from={run_folder}: needs replicas=1 in both runs")
    ours, theirs = learner.state_dict(), checkpoints.load(path)["state_dict"]
    taken = [name for name in ours if name in theirs and theirs[name].shape == ours[name].shape]
    if not taken:
        rule = "must have a weight with the same name and shape as a weight of this network"
        raise UserError(f"init_from={run_folder}: {rule}")
    with torch.no_grad():
        for name in taken:
            ours[name].copy_(theirs[name])
    log.warning("init_from=%s: took %d of %d tensors", run_folder, len(taken), len(ours))
    if len(taken) < len(ours):
        log.warning("not taken: %s", _listed([name for name in ours if name not in taken]))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" * (len(names) > NUM_SHOWN)
    return ", ".join(name.removeprefix("objective.network.") for name in names[:NUM_SHOWN]) + more
