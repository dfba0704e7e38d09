"""What a trained network says of new rows, read and written as a stream: memory does not grow with the file.

N rows, T tasks, E experts.
"""

import itertools
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import nn
from tqdm import tqdm

from mmoe import runs
from mmoe.atomic import write
from mmoe.data.encode import Rows, encode
from mmoe.data.readers import read_chunks
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.training import report
from mmoe.training.tasks import predicted

log = logging.getLogger(__name__)

# Every product has this many rows, the last ones padded: so a row's score does not depend on its neighbours.
BLOCK = 8192


def predict(
    folder: Path,
    source: Path,
    target: Path,
    checkpoint: str = "best",
    replica: int | None = None,
    gates: bool = False,
    chunk_rows: int = 65536,
    trust: Sequence[str] = (),
) -> tuple[int, float]:
    """Write a probability for each row and binary task, or a number for a regression, in the rows' order.

    Levels that the run's training file does not have are counted in a warning, by column.

    Args:
        folder: the run folder.
        source: rows, as text or Parquet; see `readers.read_chunks`.
        target: .parquet, .csv or .csv.gz; it appears when all rows are in it.
        checkpoint: name of a file of checkpoints/.
        replica: which one, of a run with replicas.
        gates: add the gate weights, a column for each task and expert.
        chunk_rows: rows that are read from Parquet at once.
        trust: packages of your own whose classes the network is built from.

    Returns:
        Number of rows, and seconds without start-up.

    Raises:
        UserError: an argument is outside its range, or a row breaks a rule; the error says which.
    """
    if not target.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise UserError(f"output={target}: must end with .parquet, .csv or .csv.gz")
    schema = runs.read_schema(folder)
    frames = read_chunks(source, schema, chunk_rows)
    network = runs.load_network(folder, checkpoint, replica, trust)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    unseen = dict.fromkeys((column.name for column in schema.categorical), 0)
    rows = blocks(ahead(encoded(frames, schema, unseen)))
    tables = (scores(network, schema, block, gates) for block in rows)
    count = 0

    def fill(scratch: Path) -> None:
        nonlocal count
        first = next(tables, None)
        if first is None:
            raise UserError(f"{source}: has no rows")
        with _writer(scratch, first.schema) as writer, tqdm(unit="row", unit_scale=True) as bar:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                count += len(table)
                bar.update(len(table))

    with closing(rows):  # on an error too: no thread reads on
        write(target, fill)
    for name, number in unseen.items():
        if number:
            log.warning("%s: %d of %d rows have a level that training did not see", name, number, count)
    return count, time.perf_counter() - started


def encoded(frames: Generator[pd.DataFrame], schema: Schema, unseen: dict[str, int]) -> Generator[Rows]:
    """Codes and numerics of each frame; levels that are not in the schema are counted by column."""
    inputs = replace(schema, tasks=())
    with closing(frames):
        for frame in frames:
            rows = encode(frame, inputs)
            missed = (rows.codes == schema.num_levels).sum(0).tolist()
            for column, number in zip(schema.categorical, missed, strict=True):
                unseen[column.name] += number
            yield rows


def ahead(parts: Generator[Rows]) -> Generator[Rows]:
    """The same parts; a thread reads and encodes the next one meanwhile. It ends with this generator."""
    with closing(parts), ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = thread.submit(next, parts, None)
            yield part


def blocks(parts: Generator[Rows]) -> Generator[tuple[Rows, int]]:
    """The same rows as blocks of BLOCK, the last one filled up with its first row, and how many are real."""
    held: Rows | None = None
    with closing(parts):
        for part in parts:
            held = Rows(*map(torch.cat, zip(held, part, strict=True))) if held else part
            whole = len(held.codes) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                yield Rows(*(tensor[start : start + BLOCK] for tensor in held)), BLOCK
            held = Rows(*(tensor[whole:] for tensor in held))
    if held and (count := len(held.codes)):
        missing = BLOCK - count
        yield Rows(*(torch.cat([part, part[:1].expand(missing, -1)]) for part in held)), count


@torch.inference_mode()
def scores(network: nn.Module, schema: Schema, block: tuple[Rows, int], gates: bool) -> pa.Table:
    """Predictions, and gate weights if asked for, of the rows of a block."""
    rows, count = block
    device = next(network.parameters()).device
    logits, weights = network(rows.codes.to(device), rows.numerics.to(device))
    columns = {report.column(task): predicted(logits[:, i], task) for i, task in enumerate(schema.tasks)}
    if gates:
        if not weights.shape[-1]:
            raise UserError("gates=true: the run's model has no gates")
        for i, task in enumerate(schema.tasks):
            columns |= {report.gate_column(task, e): weights[:, i, e] for e in range(weights.shape[2])}
    return pa.table({name: values[:count].cpu().numpy() for name, values in columns.items()})


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """A writer by the end of the file's name."""
    if path.suffix == ".parquet":
        with parquet.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            yield writer
    else:
        with pa.output_stream(str(path)) as sink, csv.CSVWriter(sink, schema) as writer:  # .gz compresses
            yield writer
