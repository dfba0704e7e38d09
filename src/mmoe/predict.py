"""Score new rows: `python -m mmoe.predict run=runs/... input=people.csv output=scores.parquet`.

Rows are read, scored and written in chunks, so memory does not grow with the file.
"""

import itertools
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import command

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mmoe.data.batch import Batch
    from mmoe.data.schema import Schema
    from mmoe.run import Run

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="predict")
@command
def main(config: DictConfig) -> None:
    """Score a file of rows and print how many rows it has."""
    from mmoe.errors import check_integers
    from mmoe.run import load

    check_integers(1, chunk_rows=config.chunk_rows)
    count, seconds = predict(
        load(str(config.run), config.trust),
        Path(str(config.input)),
        Path(str(config.output)),
        checkpoint=config.checkpoint,
        replica=config.replica,
        gates=config.gates,
        chunk_rows=config.chunk_rows,
    )
    print(f"{count:,} rows in {seconds:.1f} s ({count / seconds:,.0f} a second): {config.output}")


def predict(
    run: "Run",
    source: Path,
    target: Path,
    checkpoint: str = "best",
    replica: int | None = None,
    gates: bool = False,
    chunk_rows: int = 65536,
) -> tuple[int, float]:
    """Score a file of rows: write probabilities for binary tasks and numbers for regressions, in order.

    `source` is any file that `readers.read_chunks` accepts; `target` ends with .parquet, .csv or .csv.gz.
    `checkpoint` and `replica` are as in `Run`. `gates` adds a column with the gate weights of each task and
    expert. A warning names each column with levels that training did not see, and the number of these rows.

    Returns:
        The number of rows, and the seconds without start-up.
    """
    import pyarrow as pa
    import torch
    from tqdm import tqdm

    from mmoe.atomic import write
    from mmoe.data.readers import read_chunks
    from mmoe.errors import UserError
    from mmoe.run import compute_outputs, prediction_columns
    from mmoe.run_folder import check_not_run_file

    if not target.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise UserError(f"output={target}: must end with .parquet, .csv or .csv.gz")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"output={target}: must not be the input")
    check_not_run_file(run.folder, "output", target)
    frames = read_chunks(source, run.schema, chunk_rows)
    network = run.network(checkpoint, replica)
    if gates and not run.num_experts:
        raise UserError("gates=true: the run's model has no gates")
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    unseen = dict.fromkeys((column.name for column in run.schema.categorical), 0)
    count = 0

    def score(rows: "Batch") -> pa.Table:
        columns = prediction_columns(run.schema, compute_outputs(network, rows), gates)
        return pa.table({name: values.numpy() for name, values in columns.items()})

    def write_predictions(chunks: Iterator["Batch"], scratch: Path) -> None:
        nonlocal count
        tables = map(score, chunks)
        first = next(tables, None)
        if first is None:
            raise UserError(f"{source}: has no rows")
        with table_writer(scratch, first.schema) as writer, tqdm(unit="row", unit_scale=True) as bar:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                count += len(table)
                bar.update(len(table))

    with closing(regroup_into_blocks(read_ahead(encode_frames(frames, run.input_schema, unseen)))) as chunks:
        write(target, partial(write_predictions, chunks))
    for name, number in unseen.items():
        if number:
            log.warning("%s: %d of %d rows have a level that training did not see", name, number, count)
    return count, time.perf_counter() - started


def encode_frames(
    frames: Generator["pd.DataFrame"], schema: "Schema", unseen: dict[str, int]
) -> Generator["Batch"]:
    """Encode each frame. Add to `unseen`, by column, the number of levels that training did not see."""
    from mmoe.data.encode import encode

    with closing(frames):
        for frame in frames:
            rows = encode(frame, schema)
            unseen_counts = (rows.levels == schema.num_levels).sum(0).tolist()
            for column, number in zip(schema.categorical, unseen_counts, strict=True):
                unseen[column.name] += number
            yield rows


def read_ahead(parts: Generator["Batch"]) -> Generator["Batch"]:
    """Yield each batch while a thread prepares the next one. The thread ends with the generator."""
    from concurrent.futures import ThreadPoolExecutor

    with closing(parts), ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, parts, None)
        while (part := upcoming.result()) is not None:
            upcoming = thread.submit(next, parts, None)
            yield part


def regroup_into_blocks(parts: Generator["Batch"]) -> Generator["Batch"]:
    """Regroup rows into multiples of `run.ROWS_PER_PASS` rows, so that only the last batch needs padding."""
    import torch

    from mmoe.data.batch import Batch, split
    from mmoe.run import ROWS_PER_PASS

    rest: Batch | None = None
    with closing(parts):
        for part in parts:
            rows = Batch(*map(torch.cat, zip(rest[:3], part[:3], strict=True))) if rest is not None else part
            full, rest = split(rows, len(rows.levels) // ROWS_PER_PASS * ROWS_PER_PASS, 2)
            if len(full.levels):
                yield full
    if rest is not None and len(rest.levels):
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
