"""Score the checkpoints of a run folder, on its own rows or on others."""

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from mmoe import runs
from mmoe.atomic import write
from mmoe.bootstrap import intervals
from mmoe.build import build, build_learner
from mmoe.data.datamodule import DataModule
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.training import report

STAGES = {"val": "validate", "test": "test"}


def evaluate(
    folder: Path,
    checkpoint: str,
    split: str,
    dir: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Metrics of checkpoints, exactly as training computes them, with bootstrap intervals.

    Args:
        folder: the run folder.
        checkpoint: `best`, `last`, another name in checkpoints/, or `all`.
        split: `val` or `test`.
        dir: directory of another pair of census files, which are encoded as the run's rows were.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the resamples.
        trust: packages of your own whose classes the run is built from.

    Raises:
        UserError: an argument is outside its range, a file is missing, or the rows are others.
    """
    if split not in STAGES:
        raise UserError(f"split={split}: must be {' or '.join(STAGES)}")
    config, schema = runs.read(folder, ("inputs", "model", "objective", "learner", "data", "trainer"), trust)
    paths = runs.checkpoints(folder, checkpoint)
    data = rows_for(config, schema, dir)
    learner = build_learner(config, schema)
    trainer = trainer_for(config)
    found = []
    for path in paths:
        stored = runs.load_checkpoint(path)
        runs.load_state(learner, stored["state_dict"], path)
        getattr(trainer, STAGES[split])(learner, data, verbose=False)
        values = report.results(learner.values)[split]
        own_epochs = config.replicas > 1 and path.stem == "best"  # each replica has its own
        epoch = None if own_epochs else min(stored["epoch"] + 1, _epochs(folder))
        line: dict[str, Any] = {"checkpoint": path.stem, "epoch": epoch, "metrics": values}
        if resamples:
            learner.to(trainer.strategy.root_device)
            batches = list(getattr(data, f"{split}_dataloader")())
            labels = torch.cat([batch.labels.cpu() for batch in batches], dim=-2).numpy()
            predicted = learner.predict(batches).numpy()
            line["intervals"] = intervals(schema.tasks, predicted, labels, resamples, seed)
        found.append(line)
    return {
        "run": str(folder),
        "rows": data.schema.rows,
        "files": dict(data.schema.files),
        "split": split,
        "num_rows": learner.num_rows[split],
        "resamples": resamples,
        "checkpoints": found,
    }


def _epochs(folder: Path) -> float:
    """The epochs of a run that has ended; a checkpoint of its very end counts one more."""
    return runs.read_metrics(folder)["epochs"] if (folder / "metrics.json").exists() else math.inf


def keeps_rows(config: DictConfig) -> bool:
    """Whether a run's data module keeps its rows as a data set, as ours do, rather than batches alone."""
    target = hydra.utils.get_object(config.data._target_)
    return not inspect.isclass(target) or issubclass(target, DataModule)


def rows_for(config: DictConfig, schema: Schema, dir: str | None) -> DataModule:
    """The rows that a run was made with, or the census files of `dir`, encoded by the run's schema.

    Raises:
        UserError: the run's rows are no longer the same, or are not of files.
    """
    takes_schema = "schema" in inspect.signature(hydra.utils.get_object(config.data._target_)).parameters
    if dir is not None:
        if not takes_schema:
            raise UserError(f"data.dir={dir}: only runs on the census files can be scored on others")
        config.data.dir, config.data.source = dir, "official"
    given = {"schema": schema} if takes_schema else {}
    data: DataModule = build(config, "data", **given)
    if not takes_schema and data.schema != schema:
        raise UserError(f"data._target_={config.data._target_}: its schema is no longer that of schema.json")
    if dir is None and (data.schema.files, data.schema.num_rows) != (schema.files, schema.num_rows):
        raise UserError(
            f"data.dir={config.data.get('dir')}: must hold the files that the run was made with, by their"
            " SHA-256 in its schema.json; name a directory with other files as data.dir"
        )
    return data


def trainer_for(config: DictConfig) -> pl.Trainer:
    """A trainer of the run's precision, on one device of this machine, that writes nothing."""
    limits = ("limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")
    for key in ("strategy", "num_nodes", "max_steps", *limits):
        config.trainer.pop(key, None)
    config.trainer.accelerator, config.trainer.devices, config.trainer.max_epochs = "auto", 1, 1
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer: pl.Trainer = build(config, "trainer", **silent)
    return trainer


def save(path: Path, found: dict[str, Any]) -> None:
    """Write what was found as JSON."""
    write(path, lambda scratch: scratch.write_text(json.dumps(found, indent=1) + "\n", "utf-8"))
