"""The files of a run folder: config.yaml, schema.json, metrics.json, history.csv, predictions.parquet.

Every file is written atomically. Every reader raises UserError if its file is missing or damaged.
`stored_config` reads config.yaml, and `mmoe.run.Run` opens a folder.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from mmoe.atomic import write, write_text
from mmoe.data.schema import Schema
from mmoe.errors import UserError, first_line
from mmoe.training.stored_config import read_text, write_config

FILES = ("config.yaml", "schema.json", "metrics.json", "history.csv", "predictions.parquet")
CARDS = ("card.md", "card.html")
FOLDERS = ("checkpoints", "figures")


def start(folder: Path, config: str, schema: Schema) -> None:
    """Write schema.json, then config.yaml with the text `config`, which makes the folder a run folder.

    Raises:
        UserError: the folder holds a run already.
    """
    check_holds_no_run(folder)
    write_text(folder / "schema.json", schema.to_json())
    write_config(folder, config)


def check_holds_no_run(folder: Path) -> None:
    """Raise UserError if the folder holds a run."""
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder}: must not hold a run already; name another folder")


def forget(folder: Path) -> None:
    """Undo `start` for a run that failed before its first step."""
    for name in ("config.yaml", "schema.json"):
        (folder / name).unlink(missing_ok=True)


def finish(
    folder: Path, metrics: dict[str, Any], predictions: Iterable[pd.DataFrame], history: pd.DataFrame
) -> None:
    """Write the results of a training. metrics.json comes last, because it marks the run as ended.

    The parts of `predictions` are written one after the other; without any, there is no file.
    """
    parts = iter(predictions)
    if (first := next(parts, None)) is not None:
        write(folder / "predictions.parquet", partial(_write_parts, chain([first], parts)))
    write(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")


def _write_parts(parts: Iterable[pd.DataFrame], path: Path) -> None:
    writer: parquet.ParquetWriter | None = None
    try:
        for part in parts:
            table = pa.Table.from_pandas(part, preserve_index=False)
            writer = writer or parquet.ParquetWriter(path, table.schema, write_page_checksum=True)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def check_not_run_file(folder: Path, name: str, path: Path) -> None:
    """Raise UserError if `path`, the value of argument `name`, would overwrite a file of the run."""
    run_files = [folder.resolve() / file for file in (*FILES, *CARDS, *FOLDERS)]
    if any(path.resolve().is_relative_to(file) for file in run_files):
        raise UserError(f"{name}={path}: must not be a file of the run")


def has_card(folder: Path) -> bool:
    """Whether the folder has both files of the model card."""
    return all((folder / name).is_file() for name in CARDS)


def has_ended(folder: Path) -> bool:
    """Whether the folder's run has trained to its end."""
    return (folder / "metrics.json").exists()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes. The operating system frees the lock of a killed process.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is at work in this run folder") from None
    try:
        yield
    finally:
        # Delete the file before the release; after it, another process may hold the lock.
        (folder / "run.lock").unlink(missing_ok=True)
        lock.release()


def read_schema(folder: Path) -> Schema:
    """Read schema.json; raise UserError if it is missing or damaged."""
    path = folder / "schema.json"
    text = read_text(path, f"; is {folder} a run folder?")
    try:
        return Schema.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json; raise UserError if it is missing or damaged."""
    path = folder / "metrics.json"
    text = read_text(path, f"; is {folder} the folder of a run that has ended?")
    try:
        metrics = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)})") from None
    if not isinstance(metrics, dict) or not {"seed", "epoch", "monitor"} <= metrics.keys():
        raise UserError(f"{path}: not the metrics of a run")
    return metrics


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read history.csv or predictions.parquet. The history is empty if the run had no validation."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: missing; is {folder} the folder of a run that has ended?")
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path)
        table = parquet.read_table(path, page_checksum_verification=True)
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)  # the metadata has no checksum
        _check_columns(table.schema, frame)
        return frame
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged ({first_line(error)})") from None


def _check_columns(schema: pa.Schema, frame: pd.DataFrame) -> None:
    """Raise ValueError if a column's name or type differs from pandas's metadata; no checksum covers them."""
    metadata = (schema.metadata or {}).get(b"pandas")
    columns = [(str(name), str(dtype)) for name, dtype in frame.dtypes.items()]
    if metadata and [(c["name"], c["numpy_type"]) for c in json.loads(metadata)["columns"]] != columns:
        raise ValueError("the name or the type of a column has changed")
