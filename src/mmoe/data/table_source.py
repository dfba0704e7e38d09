"""Where the rows of a table come from: the files of a source, and how they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pandas as pd

from mmoe.data.file_states import FileState, file_states
from mmoe.errors import RowError, UserError


class Source(NamedTuple):
    """Where rows come from.

    Attributes:
        name: the name for errors.
        files: the paths of the files, by name.
        names: gives the names of all columns.
        read: reads some of the columns.
        locate: adds the file and the line to an error of a row.
    """

    name: str
    files: Mapping[str, str]
    names: Callable[[], Sequence[str]]
    read: Callable[[Sequence[str]], pd.DataFrame]
    locate: Callable[[RowError], UserError]


@contextmanager
def errors_of(source: Source) -> Iterator[None]:
    """Begin the message of a UserError with the name of the source, or with the file and the line."""
    try:
        yield
    except RowError as error:
        raise source.locate(error) from None
    except UserError as error:
        message = str(error)
        is_named = message.startswith((source.name, "data."))
        raise UserError(message if is_named else f"{source.name}: {message}") from None


def states_of(sources: Mapping[str, Source]) -> dict[str, FileState]:
    """The states of all files by name."""
    files = {name: path for source in sources.values() for name, path in source.files.items()}
    return dict(zip(files, file_states(list(files.values())), strict=True))
