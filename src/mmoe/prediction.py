"""What a trained network says of new rows, read and written as a stream: memory does not grow with the file.

N rows, T tasks, E experts.
"""

import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import nn
from torch.nn.functional import pad
from tqdm import tqdm

from mmoe import report, runs
from mmoe.atomic import write
from mmoe.data import parse
from mmoe.data.census import COLUMNS, NUMERIC
from mmoe.data.encode import Rows, encode
from mmoe.data.parquet import read_parquet
from mmoe.data.schema import Schema
from mmoe.metrics import predicted

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
) -> tuple[int, float]:
    """Write a probability for each row and binary task, or a number for a regression, in the rows' order.

    Levels that the run's training file does not have are counted in a warning, by column.

    Args:
        folder: the run folder.
        source: rows, in the official census format (with or without the label) or as Parquet by column name.
        target: .parquet, .csv or .csv.gz; it appears when all rows are in it.
        checkpoint: name of a file of checkpoints/.
        replica: which one, of a run with replicas.
        gates: add the gate weights, a column for each task and expert.
        chunk_rows: rows that are read from Parquet at once.

    Returns:
        Number of rows, and seconds without start-up.

    Raises:
        ValueError: an argument is outside its range, or a row breaks a rule; the error says which.
    """
    if not target.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError(f"output={target}: must end with .parquet, .csv or .csv.gz")
    _, schema = runs.read(folder)
    network = runs.load_network(folder, checkpoint, replica)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    unseen = dict.fromkeys((column.name for column in schema.categorical), 0)
    frames = chunks(source, schema, chunk_rows)
    rows = blocks(ahead(encoded(frames, schema, unseen)))
    tables = (scores(network, schema, block, gates) for block in rows)
    count = 0

    def fill(scratch: Path) -> None:
        nonlocal count
        first = next(tables, None)
        if first is None:
            raise ValueError(f"{source}: has no rows")
        with _writer(scratch, first.schema) as writer, tqdm(unit="row", unit_scale=True) as bar:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                count += len(table)
                bar.update(len(table))

    write(target, fill)
    for name, number in unseen.items():
        if number:
            log.warning("%s: %d of %d rows have a level that training did not see", name, number, count)
    return count, time.perf_counter() - started


def chunks(source: Path, schema: Schema, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Raw rows in the file's order, with the schema's columns."""
    if source.suffix == ".parquet":
        return read_parquet(source, schema, chunk_rows)
    if not source.name.endswith((".csv", ".csv.gz", ".data", ".data.gz", ".test", ".test.gz")):
        raise ValueError(f"input={source}: must end with .parquet, .csv or .csv.gz")
    names = [c.name for c in schema.categorical] + [c.name for c in schema.numeric]
    if not set(names) <= set(COLUMNS):
        raise ValueError(f"input={source}: must be Parquet, for the run's inputs are not the census columns")
    labelled = parse.count_fields(source) == len(COLUMNS)
    return parse.read_chunks(source, COLUMNS if labelled else COLUMNS[:-1], NUMERIC)


def encoded(frames: Iterable[pd.DataFrame], schema: Schema, unseen: dict[str, int]) -> Iterator[Rows]:
    """Codes and numerics of each frame; levels that are not in the schema are counted by column."""
    inputs = replace(schema, tasks=())
    for frame in frames:
        rows = encode(frame, inputs)
        missed = (rows.codes == schema.num_levels).sum(0).tolist()
        for column, number in zip(schema.categorical, missed, strict=True):
            unseen[column.name] += number
        yield rows


def ahead(parts: Iterable[Rows]) -> Iterator[Rows]:
    """The same parts; a thread reads and encodes the next one meanwhile."""
    iterator = iter(parts)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, None)
        while (part := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield part


def blocks(parts: Iterable[Rows]) -> Iterator[tuple[Rows, int]]:
    """The same rows as blocks of BLOCK, the last one filled up with zeros, and how many rows are real."""
    held: Rows | None = None
    for part in parts:
        held = Rows(*map(torch.cat, zip(held, part, strict=True))) if held else part
        whole = len(held.codes) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            yield Rows(*(tensor[start : start + BLOCK] for tensor in held)), BLOCK
        held = Rows(*(tensor[whole:] for tensor in held))
    if held and (count := len(held.codes)):
        yield Rows(*(pad(tensor, (0, 0, 0, BLOCK - count)) for tensor in held)), count


@torch.inference_mode()
def scores(network: nn.Module, schema: Schema, block: tuple[Rows, int], gates: bool) -> pa.Table:
    """Predictions, and gate weights if asked for, of the rows of a block."""
    rows, count = block
    device = next(network.parameters()).device
    logits, weights = network(rows.codes.to(device), rows.numerics.to(device))
    columns = {report.column(task): predicted(logits[:, i], task) for i, task in enumerate(schema.tasks)}
    if gates:
        if not weights.shape[-1]:
            raise ValueError("gates=true: the run's model has no gates")
        for i, task in enumerate(schema.tasks):
            columns |= {report.gate_column(task, e): weights[:, i, e] for e in range(weights.shape[2])}
    return pa.table({name: values[:count].cpu().numpy() for name, values in columns.items()})


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """A writer by the end of the file's name."""
    if path.suffix == ".parquet":
        with parquet.ParquetWriter(path, schema) as writer:
            yield writer
    else:
        with pa.output_stream(str(path)) as sink, csv.CSVWriter(sink, schema) as writer:  # .gz compresses
            yield writer
