"""Read the inputs of a run from Parquet, by column name, in chunks."""

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
from mmoe.data.text_blocks import file_errors
from mmoe.errors import UserError

MAGIC, ENCRYPTED = b"PAR1", b"PARE"


def read_parquet(path: Path, schema: Schema, chunk_rows: int) -> Generator[pd.DataFrame]:
    """The inputs of `schema`, in the order of the file's rows. The file may have other columns too.

    Checksums of pages are verified if the file has them.

    Raises:
        UserError: the file cannot be read, lacks a column, or a value is invalid; names column and row.
    """
    vocabularies = {column.name: frozenset(column.levels) for column in schema.categorical}
    inputs = [*vocabularies, *(column.name for column in schema.numeric)]
    _check_ends(path)
    with _parquet_errors(path), parquet.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
        kinds = list(file.schema_arrow)
        names = [kind.name for kind in kinds]
        written = _written_types(file.metadata)
    positions = dict(zip(inputs, columns.find(names, inputs, str(path)), strict=True))
    for name, position in positions.items():
        kind = kinds[position].type
        columns.check_type(kind, f"{path}, column {name}")
        if _types_differ(kind, stored := written.get(names[position], kind)):
            raise _damaged(path, f"column {name} holds {kind}, and was written as {stored}")
    with _parquet_errors(path):
        # Text that is read as a dictionary takes a fraction of the memory.
        text = [names[positions[name]] for name in vocabularies]
        file = parquet.ParquetFile(path, read_dictionary=text, page_checksum_verification=True)
        batches = file.iter_batches(chunk_rows, columns=[names[i] for i in positions.values()])
    start = 0
    with file:
        while True:
            with _parquet_errors(path):
                batch = next(batches, None)
                if batch is None:
                    break
                _check_codes(batch)
            frame = {
                name: columns.convert(batch[names[i]], vocabularies.get(name), _locator(path, name, start))
                for name, i in positions.items()
            }
            yield pd.DataFrame(frame)
            start += len(batch)
    if start != num_rows:
        raise _damaged(path, f"it has {start} rows, and its footer says {num_rows}")


def _locator(path: Path, column: str, start: int) -> columns.Locate:
    return lambda row: f"{path}, column {column}, row {start + row + 1}"


def _check_codes(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid if a code is not in its dictionary. Arrow does not check this when it reads."""
    for array in batch:
        if pa.types.is_dictionary(array.type):
            pa.DictionaryArray.from_arrays(array.indices, pa.nulls(len(array.dictionary)), safe=True)


def _check_ends(path: Path) -> None:
    """Raise UserError if the first or the last bytes show that the file is not Parquet."""
    with file_errors(path), path.open("rb") as file:
        first = file.read(len(MAGIC))
        file.seek(-min(len(MAGIC), file.seek(0, os.SEEK_END)), os.SEEK_END)
        last = file.read()
    if ENCRYPTED in (first, last):
        raise UserError(f"{path}: must not be encrypted")
    if first != MAGIC:
        what = f"begins with {first!r}" if first else "is empty"
        raise UserError(f"{path}: must be a Parquet file; {what}")
    if last != MAGIC:
        raise _damaged(path, "its end is missing")


def _written_types(metadata: parquet.FileMetaData) -> dict[str, pa.DataType]:
    """The types by column that Arrow recorded when it wrote the file; empty if Arrow did not write it."""
    stored = (metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return {}
    schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored)))
    return {field.name: field.type for field in schema}


def _types_differ(kind: pa.DataType, written: pa.DataType) -> bool:
    """Whether a damaged footer, which has no checksum, gives a wrong type that would change the numbers."""
    if pa.types.is_decimal(kind) and pa.types.is_decimal(written):
        return bool(kind.scale != written.scale)
    is_float = pa.types.is_floating(kind) or pa.types.is_floating(written)
    return bool(is_float and kind != written)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn Arrow's errors into UserError. The body must call nothing but Arrow."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, binascii.Error) as error:
        raise _damaged(path, str(error).partition("\n")[0][:200]) from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged or incomplete Parquet file ({what}); fetch or copy it again")
