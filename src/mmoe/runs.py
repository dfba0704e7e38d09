"""A run folder: everything that is known about a run, written so that a reader never sees half a file.

config.yaml (resolved, but for the folder itself), schema.json, checkpoints/, metrics.json,
predictions.parquet, the logger's files.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmoe.atomic import write
from mmoe.build import build_network, check_targets
from mmoe.data.schema import Schema


def start(folder: Path, config: DictConfig, schema: Schema) -> None:
    """Write what is known before training: config.yaml and schema.json.

    The folder's own path is left out of config.yaml, so that a run can be moved, and repeated elsewhere.

    Raises:
        ValueError: the folder holds a run.
    """
    if (folder / "config.yaml").exists():
        raise ValueError(f"{folder}: must not hold a run already; give another hydra.run.dir")
    text = OmegaConf.to_yaml(config, resolve=True).replace(str(folder), "${hydra:runtime.output_dir}")
    write(folder / "config.yaml", lambda path: path.write_text(text, "utf-8"))
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
        ValueError: a file is missing, or the configuration would build what is not a network's part.
    """
    folder = Path(folder)
    for path in (folder / "config.yaml", folder / "schema.json", folder / f"checkpoints/{checkpoint}.ckpt"):
        if not path.is_file():
            raise ValueError(f"{path}: missing; is {folder} a run folder?")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    check_targets(config)
    network = build_network(config, Schema.from_json((folder / "schema.json").read_text("utf-8")))
    state = torch.load(folder / f"checkpoints/{checkpoint}.ckpt", map_location="cpu", weights_only=True)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()
