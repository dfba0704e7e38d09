"""Encode a table in bounded memory: statistics of the training rows, then a shard for each partition.

An interrupted encoding resumes with the shards that are missing.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from mmoe.atomic import remove_abandoned, write, write_text
from mmoe.data import cache
from mmoe.data.batch import Batch, take
from mmoe.data.encode import encode, level_dtype
from mmoe.data.encode_labels import encode_groups
from mmoe.data.engine import Engine
from mmoe.data.schema import Schema
from mmoe.data.shards import Piece, ShardedRows, ShardWriter
from mmoe.data.splits import CONFIG_KEYS, SPLITS, Dataset
from mmoe.data.table_jobs import Job, errors_in, plan
from mmoe.data.table_request import Request
from mmoe.data.table_splits import check_chosen
from mmoe.data.table_statistics import collect_statistics, first_formats, fit_statistics
from mmoe.data.target_statistics import needs_statistics, with_target_statistics
from mmoe.errors import UserError

log = logging.getLogger(__name__)

SCHEMA, MANIFEST = "schema.json", "dataset.json"


def load_or_encode(
    folder: Path, request: Request, digests: Mapping[str, str], open_engine: Callable[[], Engine]
) -> Dataset:
    """Open the shards in `folder`, or make them if they are not there.

    The name of the folder must depend on all that the shards depend on. One process makes them, and the
    others wait.

    Raises:
        UserError: a file or a value breaks a rule, or a split has no rows.
        OSError: the disk is full, for example.
    """
    if not (folder / MANIFEST).exists():
        with cache.lock(folder):
            if not (folder / MANIFEST).exists():
                _encode_all(folder, request, digests, open_engine)
    try:
        stored = json.loads((folder / MANIFEST).read_text("utf-8"))
        schema = _read_schema(folder / SCHEMA, (folder / SCHEMA).stat().st_mtime_ns)
        schema = replace(schema, files=stored["files"], num_rows=stored["num_rows"])
        pieces = [Piece.from_plain(piece) for piece in stored["pieces"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: damaged ({reason}); delete the folder, and it is made again") from None
    rows = {}
    for split in SPLITS:
        own = [piece for piece in pieces if piece.split == split]
        rows[split] = ShardedRows(folder, own, _blank(schema, has_groups=split != "train"))
    return Dataset(schema, rows, {})


def _encode_all(
    folder: Path, request: Request, digests: Mapping[str, str], open_engine: Callable[[], Engine]
) -> None:
    folder.mkdir(exist_ok=True)
    remove_abandoned(folder)
    started = time.perf_counter()
    count = sum(map(len, request.files.values()))
    log.info("encoding the rows of %s file%s in shards, once: %s", f"{count:,}", "s" * (count > 1), folder)
    with open_engine() as engine:
        jobs = plan(request, engine)
        _fit_schema(folder / SCHEMA, jobs, request, engine)
        missing = [job for job in jobs if _read_pieces(folder, job) is None]
        encode_one = partial(encode_shard, folder=folder)
        for _ in _with_bar(engine.map(encode_one, missing), missing, "encoding"):
            pass
    pa.default_memory_pool().release_unused()
    pieces = [piece for job in jobs for piece in _read_pieces(folder, job) or []]
    num_rows = Counter(dict.fromkeys(SPLITS, 0))
    for piece in pieces:
        num_rows[piece.split] += piece.rows
    for split, rows in num_rows.items():
        if not rows:
            raise UserError(f"data: the split {split} has no rows")
    _add_target_statistics(folder, [piece for piece in pieces if piece.split == "train"])
    content = {
        "files": dict(digests),
        "num_rows": dict(num_rows),
        "pieces": [piece.to_plain() for piece in pieces],
    }
    write_text(folder / MANIFEST, json.dumps(content))
    log.info("encoded %s rows in %.0f s", f"{num_rows.total():,}", time.perf_counter() - started)


def _fit_schema(path: Path, jobs: Sequence[Job], request: Request, engine: Engine) -> None:
    """Store the schema of the request, or the one that fits the training rows, at `path`."""
    if path.exists():  # from an encoding that was interrupted
        return
    if request.schema:
        write_text(path, request.schema.to_json())
        return
    training = [job for job in jobs if job.partition.source == "train"]
    formats = first_formats(training[0], request)
    parts = engine.map(partial(collect_statistics, request=request, formats=formats), training)
    schema, num_rows = fit_statistics(_with_bar(parts, training, "statistics"), request, formats)
    available = num_rows["train"] + num_rows["val"] + num_rows["test"]
    for split in request.rules_of("train"):
        check_chosen(CONFIG_KEYS[split], num_rows[split], available)
    write_text(path, schema.to_json())


def _add_target_statistics(folder: Path, pieces: Sequence[Piece]) -> None:
    """Add the statistics of encoded training rows to the schema in `folder`, if its columns need them."""
    schema = Schema.from_json((folder / SCHEMA).read_text("utf-8"))
    if needs_statistics(schema):
        rows = ShardedRows(folder, pieces, _blank(schema, has_groups=False))
        text = with_target_statistics(schema, (part for part, _ in rows.parts())).to_json()
        write_text(folder / SCHEMA, text)


@lru_cache(1)
def _read_schema(path: Path, written_ns: int) -> Schema:
    """The schema at `path`, which was written at the time `written_ns`. It is read once in each process."""
    return Schema.from_json(path.read_text("utf-8"))


def encode_shard(job: Job, folder: Path) -> None:
    """Write the shard of a partition, and then the list of its pieces.

    Raises:
        UserError: a value breaks a rule.
    """
    schema = _read_schema(folder / SCHEMA, (folder / SCHEMA).stat().st_mtime_ns)
    has_held_out = job.rest != "train" or bool(job.filters) or job.splits is not None
    groups = [task.group_by for task in schema.tasks if task.group_by and has_held_out]
    columns = [*schema.input_columns, *schema.label_columns, *groups]
    name = f"{job.number:06d}.arrow"
    pieces: list[Piece] = []
    has_groups = any(task.group_by for task in schema.tasks)

    def save(scratch: Path) -> None:
        with ShardWriter(scratch, name, has_groups) as writer:
            for frame, first_row in job.frames(columns):
                with errors_in(job, first_row):
                    rows = encode(frame, schema)
                    splits = job.splits_of(frame, first_row)
                for number, split in enumerate(SPLITS):
                    chosen = np.flatnonzero(splits == number)
                    if len(chosen):
                        own = rows if len(chosen) == len(splits) else take(rows, torch.from_numpy(chosen))
                        if split != "train":
                            with errors_in(job, first_row):
                                own = own._replace(groups=encode_groups(frame, schema.tasks, chosen))
                        writer.add(split, own, first_row + chosen)
        pieces.extend(writer.pieces)

    write(folder / name, save)
    write_text(_pieces_path(folder, job), json.dumps([piece.to_plain() for piece in pieces]))


def _pieces_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.number:06d}.json"


def _read_pieces(folder: Path, job: Job) -> list[Piece] | None:
    """The pieces of a partition's shard; None if the shard is not there yet."""
    path = _pieces_path(folder, job)
    if not path.exists():
        return None
    return [Piece.from_plain(piece) for piece in json.loads(path.read_text("utf-8"))]


def _blank(schema: Schema, has_groups: bool) -> Batch:
    """A batch of no rows with the fields, widths and types that shards store."""
    tasks = len(schema.tasks)
    is_weighted = any(task.weight for task in schema.tasks)
    has_groups = has_groups and any(task.group_by for task in schema.tasks)
    return Batch(
        torch.empty(0, len(schema.column_of_position), dtype=level_dtype(schema)),
        torch.empty(0, len(schema.numeric)),
        torch.empty(0, tasks),
        torch.empty(0, tasks, dtype=torch.bool),
        torch.empty(0, tasks) if is_weighted else None,
        groups=torch.empty(0, 1, dtype=torch.int64) if has_groups else None,
    )


def _with_bar(results: Any, jobs: Sequence[Job], what: str) -> Any:
    return tqdm(results, what, total=len(jobs), unit="partition", disable=None, delay=1)
