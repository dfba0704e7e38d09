"""Run a function on every partition: in this process, or on the workers of Dask."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch

from mmoe.errors import ArgumentError, UserError, first_line

ENGINES = ("local", "dask")
RETRIES = 10  # of a task whose Dask worker has died
TIMEOUT = 20  # seconds that a scheduler has to answer

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(AbstractContextManager["Engine"], Protocol):
    """Calls a function on items, several at a time."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results, in any order."""


class LocalEngine(Engine):
    """Threads of this process, as many as torch has. Arrow and numpy release the GIL in them."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results, in any order; few of them are in memory at a time."""
        count = torch.get_num_threads()
        with ThreadPoolExecutor(count) as threads:
            left: Iterable[Item] = iter(items)
            running = {threads.submit(function, item) for item in islice(left, count)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {threads.submit(function, item) for item in islice(left, len(done))}
                for future in done:
                    yield future.result()

    def __exit__(self, *_: object) -> None:
        pass


class DaskEngine(Engine):
    """The workers of a Dask cluster, or of a new one on this machine if there is no address.

    Each worker must have mmoe installed and see the same files. If a worker dies, Dask runs its tasks again
    on another one.

    Raises:
        UserError: Dask is not installed, or there is no scheduler at the address.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import dask.distributed
        except ImportError:
            raise UserError("data.engine=dask: needs pip install 'mmoe[dask]'") from None
        dask.config.set({"distributed.scheduler.allowed-failures": RETRIES})
        logging.getLogger("distributed").setLevel(logging.WARNING)
        self._distributed: Any = dask.distributed  # it has no types
        self._cluster: Any = None
        if not address:
            self._cluster = self._distributed.LocalCluster(
                n_workers=torch.get_num_threads(), threads_per_worker=1, dashboard_address=None
            )
        try:
            self._client: Any = self._distributed.Client(self._cluster or address, timeout=TIMEOUT)
        except (OSError, TimeoutError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"data.dask_address={address}: no Dask scheduler answers ({reason})") from None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results, in any order."""
        with warnings.catch_warnings():
            # Dask warns of large jobs. They are large because each has the splits of its rows.
            warnings.simplefilter("ignore", UserWarning)
            futures = self._client.map(function, items, pure=False)
        for future in self._distributed.as_completed(futures):
            yield future.result()
            future.release()

    def __exit__(self, *_: object) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def open_engine(name: str, address: str | None) -> Engine:
    """The engine of this name; `address` is that of a Dask scheduler, such as tcp://host:8786."""
    return DaskEngine(address) if name == "dask" else LocalEngine()


def check_engine(name: str, address: str | None) -> None:
    """Raise ArgumentError unless there is an engine of this name, and it takes an address if one is given."""
    if name not in ENGINES:
        raise ArgumentError(f"engine={name}: must be one of {', '.join(ENGINES)}")
    if address is not None and name != "dask":
        raise ArgumentError(f"dask_address={address}: needs engine=dask")
