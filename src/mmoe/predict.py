"""Score new rows: `python -m mmoe.predict run=runs/... input=people.csv output=scores.parquet`.

Rows are read, scored and written in chunks, so memory does not grow with the file.
"""

import itertools
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig

from mmoe.atomic import write
from mmoe.checks.arguments import as_names, check_integers
from mmoe.cli.command import command
from mmoe.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from mmoe.data.batch import Batch
    from mmoe.data.raw_rows import RawRows, RowFormat
    from mmoe.data.schema import Schema
    from mmoe.run import Run


@command("predict")
def main(config: DictConfig) -> None:
    """Score a file of rows and print how many rows it has."""
    from mmoe.run import load

    check_integers(1, chunk_rows=config.chunk_rows)
    count, seconds = predict(
        load(str(config.run), config.trust),
        str(config.input),
        Path(str(config.output)),
        checkpoint=config.checkpoint,
        replica=config.replica,
        gates=config.gates,
        ids=as_names(config.id),
        chunk_rows=config.chunk_rows,
    )
    print(f"{count:,} rows in {seconds:.1f} s ({count / seconds:,.0f} a second): {config.output}")


def predict(
    run: "Run",
    source: str,
    target: Path,
    checkpoint: str = "best",
    replica: int | None = None,
    gates: bool = False,
    ids: Sequence[str] = (),
    chunk_rows: int = 65536,
) -> tuple[int, float]:
    """Score rows of files: write the predictions of each task, such as probabilities, in order.

    Args:
        run: the run.
        source: a file, a glob, a folder or a URL.
        target: a file that ends with .parquet, .csv or .csv.gz.
        checkpoint: as in `Run`.
        replica: as in `Run`.
        gates: add the gate weights, a column for each task and expert.
        ids: columns of the rows that are copied to the output, before the predictions.
        chunk_rows: the most rows to read at once.

    For each column, a warning gives the number of rows whose value training did not see; see `count_unseen`.

    Returns:
        The number of rows, and the seconds without start-up.
    """
    import copy

    import pyarrow as pa
    import torch
    from tqdm import tqdm

    from mmoe.data.data_files import find_files
    from mmoe.data.raw_rows import read_ahead, read_rows
    from mmoe.models.network import run_blank_rows
    from mmoe.run import compute_outputs, prediction_columns, warn_of_unseen
    from mmoe.training.run_folder import check_not_run_file

    if not target.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise UserError(f"output={target}: must end with .parquet, .csv or .csv.gz")
    try:
        files = find_files(source)
    except UserError as error:
        raise UserError(f"input={error}") from None
    if target.exists() and any(Path(file).exists() and target.samefile(file) for file in files):
        raise UserError(f"output={target}: must not be the input")
    check_not_run_file(run.folder, "output", target)
    format = find_format(run)
    raw = read_rows(files, format, run.schema, ids, chunk_rows)
    network = run.network(checkpoint, replica)
    if gates and not run_blank_rows(network, run.schema).gates.shape[-1]:
        raise UserError("gates=true: the run's model has no gates")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = copy.deepcopy(network).to(device)
    started = time.perf_counter()
    unseen: Counter[str] = Counter()
    count = 0

    def score(chunk: "Chunk") -> pa.Table:
        columns = prediction_columns(run.schema, compute_outputs(network, chunk.rows), gates)
        given = dict(zip(ids, chunk.ids.columns, strict=True))
        for name in given.keys() & columns.keys():
            raise UserError(f"id={name}: must not have the name of a prediction")
        return pa.table({**given, **{name: pa.array(values) for name, values in columns.items()}})

    def write_predictions(chunks: Iterator["Chunk"], scratch: Path) -> None:
        nonlocal count
        tables = map(score, chunks)
        first = next(tables, None)
        if first is None:
            raise UserError(f"{source}: must have at least one row; has none")
        bar = tqdm(unit="row", unit_scale=True, disable=None, delay=1, leave=False)
        with table_writer(scratch, first.schema) as writer, bar:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                count += len(table)
                bar.update(len(table))

    encoded = encode_rows(raw, run.input_schema, unseen, format.may_be_missing)
    with closing(regroup_into_blocks(read_ahead(encoded))) as chunks:
        write(target, partial(write_predictions, chunks))
    warn_of_unseen(unseen, count)
    return count, time.perf_counter() - started


class Chunk(NamedTuple):
    """Encoded rows, and their columns of ids."""

    ids: "pa.Table"
    rows: "Batch"


def find_format(run: "Run") -> "RowFormat":
    """The format of raw rows for the run: that of its table, or the default if it has no table."""
    from mmoe.data.raw_rows import default_format
    from mmoe.data.table_data import TableData

    try:
        run.check_trust("data")
    except UserError:  # a class of the user, which is not needed for predictions
        return default_format(run.schema)
    data = get_object(run.config.data._target_)
    if isinstance(data, type) and issubclass(data, TableData):
        return data.row_format(run.config.data, run.schema)
    return default_format(run.schema)


def encode_rows(
    parts: Generator["RawRows"],
    schema: "Schema",
    unseen: Counter[str],
    may_be_missing: bool,
) -> Generator[Chunk]:
    """Encode each part. Add to `unseen` what `count_unseen` counts."""
    from mmoe.data.encode import count_unseen, encode

    with closing(parts):
        for frame, ids, locate in parts:
            try:
                rows = encode(frame, schema, may_be_missing)
            except UserError as error:
                raise locate(error) from None
            for name, number in count_unseen(rows, schema).items():
                unseen[name] += number
            yield Chunk(ids, rows)


def regroup_into_blocks(parts: Generator[Chunk]) -> Generator[Chunk]:
    """Regroup rows into multiples of `run.ROWS_PER_PASS` rows, so that only the last chunk needs padding."""
    import pyarrow as pa

    from mmoe.data.batch import concatenate, split
    from mmoe.run import ROWS_PER_PASS

    rest: Chunk | None = None
    with closing(parts):
        for part in parts:
            ids, rows = part
            if rest is not None:
                ids, rows = pa.concat_tables([rest.ids, ids]), concatenate([rest.rows, rows])
            size = len(rows.levels) // ROWS_PER_PASS * ROWS_PER_PASS
            full, left = split(rows, size, 2)
            if size:
                yield Chunk(ids.slice(0, size), full)
            rest = Chunk(ids.slice(size), left)
    if rest is not None and len(rest.rows.levels):
        yield rest


@contextmanager
def table_writer(path: Path, schema: "pa.Schema") -> Iterator[Any]:
    """Open a Parquet or CSV writer, depending on the file's suffix."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if path.suffix == ".parquet":
        with parquet.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            yield writer
    else:
        with pa.output_stream(str(path)) as sink, csv.CSVWriter(sink, schema) as writer:  # compresses .gz
            yield writer


if __name__ == "__main__":
    main()
