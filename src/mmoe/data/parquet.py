"""Read the inputs of a run from Parquet, by column name, chunk by chunk."""

import base64
import binascii
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from mmoe.data import columns
from mmoe.data.schema import Schema
from mmoe.errors import UserError

MAGIC, ENCRYPTED = b"PAR1", b"PARE"


def read_parquet(path: Path, schema: Schema, chunk_rows: int) -> Generator[pd.DataFrame]:
    """The inputs of `schema` from a file that may have other columns too, in the file's order.

    Checksums of pages are verified where the file has them.

    Raises:
        UserError: the file cannot be read, lacks a column, or a value breaks a rule; names column and row.
    """
    known = {column.name: frozenset(column.levels) for column in schema.categorical}
    inputs = [*known, *(column.name for column in schema.numeric)]
    _check_ends(path)
    with _mistakes(path), parquet.ParquetFile(path) as file:
        count = file.metadata.num_rows
        kinds = list(file.schema_arrow)
        names = [kind.name for kind in kinds]
        written = _written_types(file.metadata)
    positions = columns.find(names, inputs, str(path))
    found = {name: names[position] for name, position in zip(inputs, positions, strict=True)}
    for name, position in zip(inputs, positions, strict=True):
        kind = kinds[position].type
        columns.check_type(kind, f"{path}, column {name}")
        if _contradict(kind, written.get(names[position], kind)):
            what = f"column {name} holds {kind}, and was written as {written[names[position]]}"
            raise UserError(f"{path}: not a whole Parquet file ({what}); fetch or copy it again")
    # Text that is read as a dictionary takes a fraction of the memory.
    text = [found[name] for name in known]
    with _mistakes(path):
        file = parquet.ParquetFile(path, read_dictionary=text, page_checksum_verification=True)
    start = 0
    with file:
        with _mistakes(path):
            batches = file.iter_batches(chunk_rows, columns=[*found.values()])
        while True:
            with _mistakes(path):
                batch = next(batches, None)
                if batch is None:
                    break
                _check_codes(batch)
            yield _frame(path, batch, found, known, start)
            start += len(batch)
    if start != count:
        what = f"{start} rows where its footer says {count}"
        raise UserError(f"{path}: not a whole Parquet file ({what}); fetch or copy it again")


def _frame(
    path: Path, batch: pa.RecordBatch, names: dict[str, str], known: dict[str, frozenset[str]], start: int
) -> pd.DataFrame:
    """The inputs of a batch whose first row is number `start`, from 0; `names` are the file's."""
    frame: dict[str, object] = {}
    for column, name in names.items():

        def place(row: int, column: str = column) -> str:
            return f"{path}, column {column}, row {start + row + 1}"

        array = batch[name]
        if column in known:
            frame[column] = columns.levels(array, known[column], place)
        else:
            frame[column] = columns.numbers(array, place)
    return pd.DataFrame(frame)


def _check_codes(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid for a code beyond its dictionary; Arrow does not look."""
    for array in batch:
        if pa.types.is_dictionary(array.type):
            pa.DictionaryArray.from_arrays(array.indices, pa.nulls(len(array.dictionary)), safe=True)


def _check_ends(path: Path) -> None:
    """Raise UserError for what is not a Parquet file by its first and last bytes."""
    try:
        with path.open("rb") as file:
            first = file.read(len(MAGIC))
            file.seek(-min(len(MAGIC), file.seek(0, os.SEEK_END)), os.SEEK_END)
            last = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; name a file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if ENCRYPTED in (first, last):
        raise UserError(f"{path}: must not be encrypted")
    if first != MAGIC:
        what = f"begins with {first!r}" if first else "is empty"
        raise UserError(f"{path}: must be a Parquet file; {what}")
    if last != MAGIC:
        raise UserError(f"{path}: not a whole Parquet file (its end is missing); fetch or copy it again")


def _written_types(metadata: parquet.FileMetaData) -> dict[str, pa.DataType]:
    """The types that Arrow says, by column, it wrote; nothing for a file of another writer."""
    stored = (metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return {}
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored)))
    return {field.name: field.type for field in schema}


def _contradict(kind: pa.DataType, written: pa.DataType) -> bool:
    """Whether a type of numbers cannot have been `written`: the footer has no checksum of its own."""
    if pa.types.is_decimal(kind) and pa.types.is_decimal(written):
        return bool(kind.scale != written.scale)
    either = pa.types.is_floating(kind) or pa.types.is_floating(written)
    return bool(either and kind != written)


@contextmanager
def _mistakes(path: Path) -> Iterator[None]:
    """Turn what Arrow says about a file into a UserError; the body must call nothing but Arrow."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, binascii.Error) as error:
        what = str(error).partition("\n")[0][:200]
        raise UserError(f"{path}: not a whole Parquet file ({what}); fetch or copy it again") from None
