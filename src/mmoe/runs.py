"""A run folder: everything that is known about a run, written so that a reader never sees half a file.

config.yaml (resolved), schema.json, checkpoints/, metrics.json, predictions.parquet, the logger's files.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmoe.build import build_network, resolved
from mmoe.data.schema import Schema


def start(folder: Path, config: DictConfig, schema: Schema) -> None:
    """Write what is known before training: config.yaml and schema.json."""
    write(folder / "config.yaml", lambda path: OmegaConf.save(resolved(config), path))
    write(folder / "schema.json", lambda path: path.write_text(schema.to_json(), "utf-8"))


def finish(folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame) -> None:
    """Write what is known after training: metrics.json and predictions.parquet."""
    write(folder / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False))
    write(
        folder / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    )


def load_network(folder: Path | str, checkpoint: str = "best") -> nn.Module:
    """The trained network of a run folder, in evaluation mode, on the CPU.

    Args:
        folder: the run folder.
        checkpoint: name of a file of checkpoints/, without its suffix.

    Raises:
        ValueError: a file is missing.
    """
    folder = Path(folder)
    for path in (folder / "config.yaml", folder / "schema.json", folder / f"checkpoints/{checkpoint}.ckpt"):
        if not path.is_file():
            raise ValueError(f"{path}: missing; is {folder} a run folder?")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    network = build_network(config, Schema.from_json((folder / "schema.json").read_text("utf-8")))
    state = torch.load(folder / f"checkpoints/{checkpoint}.ckpt", map_location="cpu", weights_only=True)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()


def write(path: Path, to: Callable[[Path], Any]) -> None:
    """Let `to` write a file beside `path`, then rename it, so that `path` is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        to(Path(scratch))
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
