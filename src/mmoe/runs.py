"""A run folder: everything that is known about a run, written so that a reader never sees half a file.

config.yaml (resolved, but for the folder itself), schema.json, checkpoints/, metrics.json,
history.csv, predictions.parquet, the logger's files.
"""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mmoe import report
from mmoe.atomic import write
from mmoe.build import build_network, check_targets
from mmoe.data.schema import Schema


def start(folder: Path, config: DictConfig, schema: Schema) -> None:
    """Write what is known before training: config.yaml and schema.json.

    The folder's own path is left out of config.yaml, so that a run can be moved, and repeated elsewhere.

    Raises:
        ValueError: the folder holds a run.
    """
    _begin(folder, _portable(config, folder), schema)


def is_run_of(folder: Path, config: DictConfig) -> bool:
    """Whether a folder holds a run of this very configuration."""
    path = folder / "config.yaml"
    return path.is_file() and path.read_text("utf-8") == _portable(config, folder)


def _portable(config: DictConfig, folder: Path) -> str:
    return OmegaConf.to_yaml(config, resolve=True).replace(str(folder), "${hydra:runtime.output_dir}")


def _begin(folder: Path, config: str, schema: Schema) -> None:
    if (folder / "config.yaml").exists():
        raise ValueError(f"{folder}: must not hold a run already; name another folder")
    write(folder / "config.yaml", lambda path: path.write_text(config, "utf-8"))
    write(folder / "schema.json", lambda path: path.write_text(schema.to_json(), "utf-8"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a run folder; a lock ends with the process that has it.

    Raises:
        ValueError: another process has it.
    """
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another process is at work in this run folder") from None
    try:
        yield
    finally:
        lock.release()
        (folder / "run.lock").unlink(missing_ok=True)


def finish(folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame, history: pd.DataFrame) -> None:
    """Write what is known after training: predictions.parquet, history.csv and, last, metrics.json."""
    write(folder / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False))
    write(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    write(
        folder / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    )


def load_network(folder: Path | str, checkpoint: str = "best", replica: int | None = None) -> nn.Module:
    """The trained network of a run folder, in evaluation mode, on the CPU.

    Args:
        folder: the run folder.
        checkpoint: name of a file of checkpoints/, without its suffix.
        replica: which one, from 0, of a run with replicas.

    Raises:
        ValueError: a file is missing, or the configuration would build what is not a network's part.
    """
    config, schema = read(Path(folder))
    network = build_network(config, schema)
    if checkpoint == "all":
        raise ValueError("checkpoint=all: must name one")
    (path,) = checkpoints(Path(folder), checkpoint)
    state = load_checkpoint(path)["state_dict"]
    network.load_state_dict(network_state(state, network, config.replicas, replica))
    return network.eval()


def read(folder: Path) -> tuple[DictConfig, Schema]:
    """Configuration and schema of a run folder.

    Raises:
        ValueError: a file is missing, or the configuration would build what is not a network's part.
    """
    for path in (folder / "config.yaml", folder / "schema.json"):
        if not path.is_file():
            raise ValueError(f"{path}: missing; is {folder} a run folder?")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    check_targets(config)
    return config, Schema.from_json((folder / "schema.json").read_text("utf-8"))


def checkpoints(folder: Path, name: str) -> list[Path]:
    """The file of checkpoint `name`, or those of all, by name.

    Raises:
        ValueError: there is none.
    """
    every = sorted((folder / "checkpoints").glob("[!.]*.ckpt"))
    chosen = [path for path in every if name in ("all", path.stem)]
    if not chosen:
        known = ", ".join(path.stem for path in every) or "none"
        raise ValueError(f"checkpoint={name}: must be all or one of {folder}/checkpoints: {known}")
    return chosen


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values, on the CPU.

    Raises:
        ValueError: the file is not whole, or holds anything else, such as code to run.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a whole checkpoint of tensors and plain values ({why})") from None
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


def extract(folder: Path, replica: int, out: Path) -> None:
    """Write one replica of a run as a run folder of its own, `out`, as if it had been trained alone.

    Raises:
        ValueError: there is no such replica, or `out` holds a run.
    """
    config, schema = read(folder)
    network = build_network(config, schema)
    (path,) = checkpoints(folder, "best")
    stored = load_checkpoint(path)
    state = network_state(stored["state_dict"], network, config.replicas, replica)
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    run = metrics.pop("runs")[replica]
    for key in ("replicas", "std", "half_interval"):
        del metrics[key]
    frame = pd.read_parquet(folder / "predictions.parquet")
    frame = frame.rename(columns=lambda name: name.removesuffix(f"_{replica}"))
    columns = ["row"]
    for task in schema.tasks:
        columns += [f"{task.name}_label", report.column(task)]
    history = pd.read_csv(folder / "history.csv")
    config.replicas, config.seed = 1, run["seed"]
    if "replicas" in config.data:  # each has rows of its own; else data.seed stays, with the same batches
        config.data.replicas, config.data.seed = 1, config.data.seed + replica
    _begin(out, OmegaConf.to_yaml(config), schema)
    kept = {key: stored[key] for key in ("pytorch-lightning_version", "global_step")}
    kept |= {"epoch": run["epoch"] - 1, "state_dict": {f"objective.network.{k}": v for k, v in state.items()}}
    save_checkpoint(out / "checkpoints/best.ckpt", kept)
    finish(out, metrics | run, frame[columns], history[history["seed"] == run["seed"]])


def network_state(
    state: dict[str, Tensor], network: nn.Module, replicas: int, replica: int | None
) -> dict[str, Tensor]:
    """What a checkpoint's state says of `network`, or of one of its replicas."""
    check_replica(replicas, replica)
    prefix = "objective.network." if replica is None else "objective.stacked.network."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if replica is not None:
        trained = dict(network.named_parameters())  # buffers are not stacked
        weights = {k: v[replica].clone() if k in trained else v for k, v in weights.items()}
    return weights


def check_replica(replicas: int, replica: int | None) -> None:
    """Raise ValueError unless a run of `replicas` has one of that number, or none where there are none."""
    if (replicas > 1) != (replica is not None) or not 0 <= (replica or 0) < replicas:
        of_many = f"the run has {replicas} replicas: must be 0 to {replicas - 1}"
        rule = of_many if replicas > 1 else "the run has no replicas"
        raise ValueError(f"replica={replica}: {rule}")
