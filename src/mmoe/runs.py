"""A run folder: everything that is known about a run, written so that a reader never sees half a file.

config.yaml (resolved, but for the folder itself), schema.json, checkpoints/, metrics.json,
history.csv, predictions.parquet, the logger's files.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pyarrow import parquet
from torch import Tensor, nn

from mmoe.arguments import check_integers, is_a
from mmoe.atomic import write
from mmoe.build import build_network, check_targets
from mmoe.data.schema import Schema
from mmoe.errors import UNWRITABLE, UserError
from mmoe.training import report

FOLDER = "${hydra:runtime.output_dir}"  # what config.yaml has in the place of the folder's own path
MARK = "__folder_qkzvxwjhbp__"  # stands for FOLDER while the rest is resolved; text that OmegaConf can parse
END = "# end"  # the last line of config.yaml: a file that was cut may still be valid YAML
FOLDER_BIT = (
    0x10  # of a file in a zip archive: torch would not read such a one, and leave its tensor as it is
)
NETWORK = ("inputs", "model")  # the parts of a configuration that a network is built from
BUILT = (*NETWORK, "data", "objective", "learner", "trainer")  # the parts that every configuration has


def start(folder: Path, config: DictConfig, schema: Schema) -> None:
    """Write what is known before training: schema.json, then config.yaml, which makes the folder a run's.

    The folder's own path is left out of config.yaml, so that a run can be moved, and repeated elsewhere.

    Raises:
        UserError: the folder holds a run.
    """
    _begin(folder, portable(config), schema)


def is_run_of(folder: Path, config: DictConfig) -> bool:
    """Whether a folder holds a run of this very configuration."""
    path = folder / "config.yaml"
    return path.is_file() and path.read_text("utf-8") == portable(config)


def portable(config: DictConfig) -> str:
    """The configuration as YAML, resolved but for `FOLDER`, wherever that stands in it.

    Raises:
        UserError: a value would be read back as an interpolation.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    marked = OmegaConf.create(_each_text(raw, lambda _, text: text.replace(FOLDER, MARK)))
    resolved = _each_text(OmegaConf.to_container(marked, resolve=True), _without_interpolation)
    return as_text(OmegaConf.create(_each_text(resolved, lambda _, text: text.replace(MARK, FOLDER))))


def as_text(config: DictConfig) -> str:
    """A configuration as the text of a config.yaml: YAML, unresolved, and the line `END`."""
    return f"{OmegaConf.to_yaml(config)}{END}\n"


def _is_whole(text: str) -> bool:
    return text.splitlines()[-1:] == [END]


def _each_text(node: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """A copy of plain dicts and lists with each text changed by `change(dotted key, text)`."""
    if isinstance(node, dict):
        return {k: _each_text(v, change, f"{key}.{k}" if key else str(k)) for k, v in node.items()}
    if isinstance(node, list):
        return [_each_text(v, change, f"{key}[{i}]") for i, v in enumerate(node)]
    return change(key, node) if isinstance(node, str) else node


def _without_interpolation(key: str, text: str) -> str:
    if "${" in text:
        raise UserError(f"{key}={text}: must hold no interpolation; only {FOLDER} may stand in a config.yaml")
    return text


def _begin(folder: Path, config: str, schema: Schema) -> None:
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder}: must not hold a run already; name another folder")
    write(folder / "schema.json", lambda path: path.write_text(schema.to_json(), "utf-8"))
    write_config(folder, config)


def write_config(folder: Path, config: str) -> None:
    """Write config.yaml, as `portable` or `as_text` makes it."""
    assert _is_whole(config)
    write(folder / "config.yaml", lambda path: path.write_text(config, "utf-8"))


def forget(folder: Path) -> None:
    """Undo `start`: the run ended before its first step."""
    for name in ("config.yaml", "schema.json"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a run folder; a lock ends with the process that has it.

    Raises:
        UserError: another process has it.
    """
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is at work in this run folder") from None
    try:
        yield
    finally:
        (folder / "run.lock").unlink(missing_ok=True)  # first: once released, it may be another process's
        lock.release()


def finish(
    folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame | None, history: pd.DataFrame
) -> None:
    """Write what is known after training: predictions.parquet, history.csv and, last, metrics.json."""
    if predictions is not None:
        save = partial(predictions.to_parquet, index=False, write_page_checksum=True)
        write(folder / "predictions.parquet", save)
    write(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    write(
        folder / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    )


def load_network(
    folder: Path | str, checkpoint: str = "best", replica: int | None = None, trust: Sequence[str] = ()
) -> nn.Module:
    """The trained network of a run folder, in evaluation mode, on the CPU.

    Args:
        folder: the run folder.
        checkpoint: name of a file of checkpoints/, without its suffix.
        replica: which one, from 0, of a run with replicas.
        trust: packages of your own whose classes the network may be built from.

    Raises:
        UserError: a file is missing or damaged, or the configuration would build what it may not.
    """
    config, schema = read(Path(folder), NETWORK, trust)
    network = build_network(config, schema)
    if checkpoint == "all":
        raise UserError("checkpoint=all: must name one")
    (path,) = checkpoints(Path(folder), checkpoint)
    load_state(network, network_state(load_checkpoint(path), network, config.replicas, replica), path)
    return network.eval()


def load_state(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Give a module the weights of a checkpoint.

    Raises:
        UserError: they are those of another network.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(line.strip() for line in str(error).splitlines()[1:2])
        raise UserError(f"{path}: does not fit the network of config.yaml and schema.json ({why})") from None


def read(
    folder: Path, builds: Sequence[str] | None = None, trust: Sequence[str] = ()
) -> tuple[DictConfig, Schema]:
    """Configuration and schema of a run folder.

    The configuration is read without interpolations and resolvers; the folder's own path is put back.

    Args:
        folder: the run folder.
        builds: the keys of the configuration that will be built; None is all of them.
        trust: packages that may build anything.

    Raises:
        UserError: a file is missing or damaged, the configuration would build what it may not, or the
            folder's path would be an interpolation.
    """
    config = stored_config(folder)
    for key in config if builds is None else builds:
        check_targets(config.get(key), trust, str(key))
    absolute = str(folder.absolute())
    if "${" in absolute:
        raise UserError(f"{absolute}: must not hold ${{, which begins an interpolation; rename the folder")
    own = _each_text(config, lambda _, text: text.replace(FOLDER, absolute))
    return OmegaConf.create(own, flags={"allow_objects": False}), read_schema(folder)


def stored_config(folder: Path) -> dict[str, Any]:
    """What config.yaml holds, as plain dicts and lists; nothing in it is interpolated.

    Raises:
        UserError: it is missing or damaged, or holds an interpolation.
    """
    path = folder / "config.yaml"
    text = _read_text(path, f"; is {folder} a run folder?")
    if not _is_whole(text):
        raise UserError(f"{path}: not a whole configuration (its last line must be {END!r})")
    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # PyYAML may raise anything for a scalar that is not of its tag
        raise UserError(f"{path}: not a whole configuration ({_first_line(error)})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a whole configuration (it must be a mapping)")
    _each_text(config, lambda key, text: _without_interpolation(f"{path}, {key}", text.replace(FOLDER, "")))
    try:
        _check_parts(config)
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    return {str(key): value for key, value in config.items()}


def _check_parts(config: dict[Any, Any]) -> None:
    """Raise UserError for a part of a stored configuration that is missing or of another kind."""
    for key in (*BUILT, "callbacks", "monitor", "seed", "replicas"):
        if key not in config:
            raise UserError(f"{key}: must be there, is missing")
    for key in BUILT:
        if not isinstance(config[key], dict):
            raise UserError(f"{key}={config[key]}: must be a mapping with a _target_")
        if not isinstance(config[key].get("_target_"), str):
            raise UserError(f"{key}: must have a _target_, the class to build")
    for key in ("callbacks", "logger"):  # what is null or false is not built
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
    """The schema of a run folder.

    Raises:
        UserError: schema.json is missing or damaged.
    """
    path = folder / "schema.json"
    text = _read_text(path, f"; is {folder} a run folder?")
    try:
        return Schema.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json holds.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "metrics.json"
    text = _read_text(path, f"; is {folder} the folder of a run that has ended?")
    try:
        metrics = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not whole ({_first_line(error)})") from None
    if not isinstance(metrics, dict) or not {"seed", "epoch", "monitor"} <= metrics.keys():
        raise UserError(f"{path}: not the metrics of a run")
    return metrics


def _read_text(path: Path, hint: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: missing{hint}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_frame(folder: Path, name: str) -> pd.DataFrame:
    """A table of a run that has ended: history.csv, empty if nothing was validated, or predictions.parquet.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: missing; is {folder} the folder of a run that has ended?")
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path)
        table = parquet.read_table(path, page_checksum_verification=True)
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)  # what pandas adds has no checksum
        _check_columns(table.schema, frame)
        return frame
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: not whole ({_first_line(error)})") from None


def _check_columns(schema: pa.Schema, frame: pd.DataFrame) -> None:
    """Raise ValueError unless names and types are those that pandas noted: they have no checksum."""
    noted = (schema.metadata or {}).get(b"pandas")
    columns = [(str(name), str(dtype)) for name, dtype in frame.dtypes.items()]
    if noted and [(one["name"], one["numpy_type"]) for one in json.loads(noted)["columns"]] != columns:
        raise ValueError("the name or the type of a column has changed")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def checkpoints(folder: Path, name: str) -> list[Path]:
    """The file of checkpoint `name`, or those of all, by name.

    Raises:
        UserError: there is none.
    """
    every = sorted((folder / "checkpoints").glob("[!.]*.ckpt"))
    chosen = [path for path in every if name in ("all", path.stem)]
    if not chosen:
        known = ", ".join(path.stem for path in every) or "none"
        raise UserError(f"checkpoint={name}: must be all or one of {folder}/checkpoints: {known}")
    return chosen


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values, on the CPU. Its checksums are compared first.

    Raises:
        UserError: the file is damaged, or holds anything else, such as code to run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums
            folders = [one.filename for one in archive.infolist() if one.external_attr & FOLDER_BIT]
        if damaged := damaged or next(iter(folders), None):
            raise UserError(f"{path}: not a whole checkpoint ({damaged} has changed)")
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # zipfile and torch may raise anything for a damaged file
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        why = _first_line(error)
        raise UserError(f"{path}: not a whole checkpoint of tensors and plain values ({why})") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: not a checkpoint of a training")
    return checkpoint


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: whole, or not at all."""

    def save(scratch: Path) -> None:
        try:
            with scratch.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch's own, on top of what the disk said
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    write(path, save)


def extract(folder: Path, replica: int, out: Path, trust: Sequence[str] = ()) -> None:
    """Write one replica of a run as a run folder of its own, `out`, as if it had been trained alone.

    The folder appears when everything is in it.

    Raises:
        UserError: there is no such replica, or `out` holds a run.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: must be a folder")
    if (out / "config.yaml").exists():
        raise UserError(f"{out}: must not hold a run already; name another folder")
    config, schema = read(folder, NETWORK, trust)
    network = build_network(config, schema)
    (path,) = checkpoints(folder, "best")
    stored = load_checkpoint(path)
    state = network_state(stored, network, config.replicas, replica)
    load_state(network, state, path)
    metrics = read_metrics(folder)
    run = metrics.pop("runs")[replica]
    for key in ("replicas", "std", "half_interval"):
        del metrics[key]
    frame = _predictions_of(folder, schema, replica) if "test" in run else None
    history = read_frame(folder, "history.csv")
    if len(history):
        history = history[history["seed"] == run["seed"]]
    config = OmegaConf.create(stored_config(folder))
    config.replicas, config.seed = 1, run["seed"]
    if "replicas" in config.data:  # each has rows of its own; else data.seed stays, with the same batches
        config.data.replicas, config.data.seed = 1, config.data.seed + replica
    kept = {key: stored[key] for key in ("pytorch-lightning_version", "global_step")}
    kept |= {"epoch": run["epoch"] - 1, "state_dict": {f"objective.network.{k}": v for k, v in state.items()}}
    scratch = out.with_name(f".{out.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    try:
        _begin(scratch, as_text(config), schema)
        save_checkpoint(scratch / "checkpoints/best.ckpt", kept)
        finish(scratch, metrics | run, frame, history)
        if out.is_dir() and any(out.iterdir()):
            shutil.copytree(scratch, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.yaml"))
            write_config(out, as_text(config))  # last, for it makes the folder a run's
        else:
            scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _predictions_of(folder: Path, schema: Schema, replica: int) -> pd.DataFrame:
    """The predictions of one replica, under the names that those of a run without replicas have."""
    frame = read_frame(folder, "predictions.parquet")
    frame = frame.rename(columns=lambda name: name.removesuffix(f"_{replica}"))
    columns = ["row"]
    for task in schema.tasks:
        columns += [f"{task.name}_label", report.column(task)]
    return frame[columns]


def network_state(
    stored: dict[str, Any], network: nn.Module, replicas: int, replica: int | None
) -> dict[str, Tensor]:
    """What a checkpoint says of `network`, or of one of its replicas."""
    check_replica(replicas, replica)
    state: dict[str, Tensor] = stored["state_dict"]
    prefix = "objective.network." if replica is None else "objective.stacked.network."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if replica is not None:
        trained = dict(network.named_parameters())  # buffers are not stacked
        weights = {k: v[replica].clone() if k in trained else v for k, v in weights.items()}
    return weights


def check_replica(replicas: int, replica: int | None) -> None:
    """Raise UserError unless a run of `replicas` has one of that number, or none where there are none."""
    given = is_a(Integral, replica) and 0 <= replica < replicas  # type: ignore[operator]
    if not (given if replicas > 1 else replica is None):
        of_many = f"the run has {replicas} replicas: must be 0 to {replicas - 1}"
        rule = of_many if replicas > 1 else "the run has no replicas"
        raise UserError(f"replica={replica}: {rule}")
