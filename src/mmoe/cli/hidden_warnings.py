"""Warnings of Lightning and torch that need no action."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

IGNORED_WARNINGS = (
    "The number of training batches",  # it is smaller than the logging interval on small data
    ".*sync_dist=True",  # metrics already cover all processes
    "Checkpoint directory",  # it is not empty when a run is resumed
    "You requested to overfit",  # our loader does not shuffle then
    ".*could not find the monitored key",  # the final report says so
)


@contextmanager
def useless_warnings_hidden() -> Iterator[None]:
    """Hide warnings of libraries that no user can act on."""
    with warnings.catch_warnings():
        # Lightning 2.6 uses a name that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield
