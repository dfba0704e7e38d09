"""The files of a run folder: config.yaml, schema.json, metrics.json, history.csv, predictions.parquet.

Every file is written atomically. Every reader raises UserError if its file is missing or damaged.
`mmoe.run.Run` opens a folder.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pyarrow import parquet

from mmoe.atomic import write
from mmoe.data.schema import Schema
from mmoe.errors import UserError, check_integers, first_line

FOLDER = "${hydra:runtime.output_dir}"  # config.yaml has this text instead of the run folder's path
FOLDER_PLACEHOLDER = "__folder_qkzvxwjhbp__"  # stands for FOLDER while OmegaConf resolves the rest
END = "# end"  # last line of config.yaml; without it, a truncated file could pass as valid YAML
FILES = ("config.yaml", "schema.json", "metrics.json", "history.csv", "predictions.parquet")
REQUIRED_PARTS = ("inputs", "model", "data", "objective", "learner", "trainer")  # of every configuration


def start(folder: Path, config: str, schema: Schema) -> None:
    """Write schema.json, then config.yaml with the text `config`, which makes the folder a run folder.

    Raises:
        UserError: the folder holds a run already.
    """
    check_holds_no_run(folder)
    write(folder / "schema.json", lambda path: path.write_text(schema.to_json(), "utf-8"))
    write_config(folder, config)


def check_holds_no_run(folder: Path) -> None:
    """Raise UserError if the folder holds a run."""
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder}: must not hold a run already; name another folder")


def write_config(folder: Path, config: str) -> None:
    """Write config.yaml from the text of `portable_yaml` or `to_yaml`."""
    assert _is_complete(config)
    write(folder / "config.yaml", lambda path: path.write_text(config, "utf-8"))


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
    text = json.dumps(metrics, indent=1) + "\n"
    write(folder / "metrics.json", lambda path: path.write_text(text, "utf-8"))


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
    run_files = [folder.resolve() / file for file in (*FILES, "checkpoints", "figures")]
    if any(path.resolve().is_relative_to(file) for file in run_files):
        raise UserError(f"{name}={path}: must not be a file of the run")


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


def portable_yaml(config: DictConfig) -> str:
    """Resolve a configuration and return it as YAML. `FOLDER` stands for the run folder, which may move.

    Raises:
        UserError: a resolved value still looks like an interpolation.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    marked = OmegaConf.create(_map_strings(raw, lambda _, text: text.replace(FOLDER, FOLDER_PLACEHOLDER)))
    resolved = _map_strings(OmegaConf.to_container(marked, resolve=True), _refuse_interpolation)
    portable = _map_strings(resolved, lambda _, text: text.replace(FOLDER_PLACEHOLDER, FOLDER))
    return to_yaml(OmegaConf.create(portable))


def to_yaml(config: DictConfig) -> str:
    """Return the configuration as the text of a config.yaml, without resolving it."""
    return f"{OmegaConf.to_yaml(config)}{END}\n"


def is_run_of(folder: Path, config: DictConfig) -> bool:
    """Whether the folder holds a run with exactly this configuration."""
    path = folder / "config.yaml"
    if not path.is_file():
        return False
    text = path.read_text("utf-8")
    if _is_complete(text) and config.get("monitor") is None:
        # The run has stored the monitor that follows from its tasks.
        stored: Any = OmegaConf.create(text)
        filled = {key: stored.get(key) for key in ("monitor", "monitor_mode")}
        config = OmegaConf.merge(config, filled)  # type: ignore[assignment]
    return text == portable_yaml(config)


def read_config(folder: Path) -> DictConfig:
    """Read config.yaml and replace `FOLDER` by the folder's path. No interpolation is resolved.

    Raises:
        UserError: the file is missing or damaged, or the folder's path contains ${.
    """
    config = stored_config(folder)
    absolute = str(folder.absolute())
    if "${" in absolute:
        raise UserError(f"{absolute}: must not hold ${{, which begins an interpolation; rename the folder")
    with_path = _map_strings(config, lambda _, text: text.replace(FOLDER, absolute))
    read: DictConfig = OmegaConf.create(with_path, flags={"allow_objects": False})
    return read


def stored_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml as plain dicts and lists.

    Raises:
        UserError: the file is missing or damaged, or holds an interpolation.
    """
    path = folder / "config.yaml"
    text = _read_text(path, f"; is {folder} a run folder?")
    if not _is_complete(text):
        raise UserError(f"{path}: damaged (its last line must be {END!r})")
    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # PyYAML may raise anything, such as for a wrong tag
        raise UserError(f"{path}: damaged ({first_line(error)})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged (it must be a mapping)")
    _map_strings(config, lambda key, text: _refuse_interpolation(f"{path}, {key}", text.replace(FOLDER, "")))
    try:
        _check_parts(config)
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    return {str(key): value for key, value in config.items()}


def _is_complete(text: str) -> bool:
    return text.splitlines()[-1:] == [END]


def _map_strings(node: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """Copy plain dicts and lists, and replace each string with `change(dotted key, string)`."""
    if isinstance(node, dict):
        return {k: _map_strings(v, change, f"{key}.{k}" if key else str(k)) for k, v in node.items()}
    if isinstance(node, list):
        return [_map_strings(v, change, f"{key}[{i}]") for i, v in enumerate(node)]
    return change(key, node) if isinstance(node, str) else node


def _refuse_interpolation(key: str, text: str) -> str:
    if "${" in text:
        rule = f"must not hold an interpolation; the only one allowed in a config.yaml is {FOLDER}"
        raise UserError(f"{key}={text}: {rule}")
    return text


def _check_parts(config: dict[Any, Any]) -> None:
    """Raise UserError if a part of a stored configuration is missing or has the wrong type."""
    for key in (*REQUIRED_PARTS, "callbacks", "monitor", "seed", "replicas"):
        if key not in config:
            raise UserError(f"{key}: is missing")
    for key in REQUIRED_PARTS:
        if not isinstance(config[key], dict):
            raise UserError(f"{key}={config[key]}: must be a mapping with a _target_")
        if not isinstance(config[key].get("_target_"), str):
            raise UserError(f"{key}: must have a _target_, the class to build")
    for key in ("callbacks", "logger"):  # null or false: not built
        parts = config.get(key) or {}
        if not isinstance(parts, dict):
            raise UserError(f"{key}={parts}: must be a mapping or null")
        for name, part in parts.items():
            if part and not isinstance(part, dict) and "_target_" not in parts:
                raise UserError(f"{key}.{name}={part}: must be a mapping or null")
    if not isinstance(config["monitor"], str):
        raise UserError(f"monitor={config['monitor']}: must be the name of a metric")
    check_integers(0, seed=config["seed"])
    check_integers(1, replicas=config["replicas"])


def read_schema(folder: Path) -> Schema:
    """Read schema.json; raise UserError if it is missing or damaged."""
    path = folder / "schema.json"
    text = _read_text(path, f"; is {folder} a run folder?")
    try:
        return Schema.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json; raise UserError if it is missing or damaged."""
    path = folder / "metrics.json"
    text = _read_text(path, f"; is {folder} the folder of a run that has ended?")
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
    """Raise ValueError if a column's name or type differs from pandas's metadata. Neither has a checksum."""
    metadata = (schema.metadata or {}).get(b"pandas")
    columns = [(str(name), str(dtype)) for name, dtype in frame.dtypes.items()]
    if metadata and [(c["name"], c["numpy_type"]) for c in json.loads(metadata)["columns"]] != columns:
        raise ValueError("the name or the type of a column has changed")


def _read_text(path: Path, hint: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: missing{hint}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
