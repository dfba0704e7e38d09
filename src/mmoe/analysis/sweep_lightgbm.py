"""LightGBM beside the runs of a sweep: one model for each task and seed, on the same rows.

The results are kept in lightgbm.json, in the folder of the sweep.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from mmoe.analysis.lightgbm_training import (
    OBJECTIVES,
    known_rows,
    lightgbm_inputs,
    rows_in_memory,
    train_lightgbm,
)
from mmoe.atomic import write_text
from mmoe.data.splits import SPLITS, Dataset
from mmoe.errors import UserError
from mmoe.run import MAX_ANALYSED_ROWS, Run
from mmoe.training.stored_config import read_text

FILE = "lightgbm.json"
# Usual settings for tables. They are not searched.
PARAMETERS = {
    "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 20, "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
}  # fmt: skip
MAX_ROUNDS, PATIENCE = 2000, 50  # boosting rounds; the validation rows choose their number
PRIOR = 20.0  # rows with the mean label that are added to each level
# Keys of `data` that do not decide which rows and labels a run has. Files are compared by their digests.
OTHER_KEYS = (
    "train", "dir", "source", "url", "cache_dir", "engine", "dask_address", "stream", "level_encoding",
    "num_bins", "batch_size", "eval_batch_size", "resident", "seed", "replicas",
)  # fmt: skip


def check_installed() -> None:
    """Raise UserError if LightGBM is not installed."""
    if importlib.util.find_spec("lightgbm") is None:
        raise UserError("--lightgbm: needs pip install 'mmoe[lightgbm]'")


def train_baseline(folder: Path, run_folders: Sequence[Path], seeds: Sequence[int]) -> None:
    """Train LightGBM with each seed that lightgbm.json lacks, and write that file.

    Raises:
        UserError: the runs do not have the same rows, or LightGBM cannot be trained and tested on them.
    """
    runs = [Run(path) for path in run_folders]
    identities = [_identity_of(run) for run in runs]
    first = identities[0]
    for run, own in zip(runs, identities, strict=True):
        if own != first:
            key = next(key for key in own.keys() | first.keys() if own.get(key) != first.get(key))
            raise UserError(f"--lightgbm: {key} of {run.folder} must be that of {runs[0].folder}")
    if not runs[0].schema.files:
        raise UserError(f"--lightgbm: the rows of {runs[0].folder} must be from files")
    found = read_baseline(folder, runs[0])
    for task in runs[0].schema.tasks:
        if task.kind not in OBJECTIVES:
            raise UserError(f"--lightgbm: task {task.name} has the kind {task.kind}, which has no objective")
    missing = [seed for seed in seeds if seed not in {one["seed"] for one in found}]
    if not missing:
        return
    data = Dataset(runs[0].schema, {split: runs[0].rows(split) for split in SPLITS}, {})
    for split in SPLITS:
        rows_of_split, count = rows_in_memory(data, split), data.schema.num_rows[split]
        if len(rows_of_split.labels) < count:
            rule = f"must be at most {MAX_ANALYSED_ROWS:,}, because LightGBM needs them in memory"
            raise UserError(f"--lightgbm: the {count:,} {split} rows {rule}")
        for i, task in enumerate(data.schema.tasks):
            if not known_rows(rows_of_split, i).any():
                raise UserError(f"--lightgbm: task {task.name} must have a known label in the {split} rows")
    for seed in tqdm(missing, desc="LightGBM", unit="seed"):
        found.append({"seed": seed, **_metrics(data, seed)})
        write_text(folder / FILE, json.dumps({"rows": first, "runs": found}, indent=1) + "\n")


def read_baseline(folder: Path, run: Run) -> list[dict[str, Any]]:
    """The results in lightgbm.json by seed, or an empty list if the file is missing or is about other rows.

    A result has the `seed` and, for `val` and `test`, the metrics of each task.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        content = json.loads(read_text(path, ""))
        found = [{key: one[key] for key in ("seed", "val", "test")} for one in content["runs"]]
        return found if content["rows"] == _identity_of(run) else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; delete it, and compare with --lightgbm again") from error


def _identity_of(run: Run) -> dict[str, Any]:
    """The settings and files that decide which rows and labels a run has."""
    data: Any = OmegaConf.to_container(run.config.data)
    given = {key: value for key, value in data.items() if key not in OTHER_KEYS and value is not None}
    settings = {f"data.{key}": value for key, value in given.items()}
    for key in ("data.validation", "data.test"):
        if not isinstance(settings.get(key), dict):  # files, not a rule
            settings.pop(key, None)
    found = settings | {"files": dict(run.schema.files), "num_rows": dict(run.schema.num_rows)}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _metrics(data: Dataset, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of `val` and `test` by task, of models with this seed."""
    found: dict[str, dict[str, dict[str, float]]] = {"val": {}, "test": {}}
    for i, task in enumerate(data.schema.tasks):
        model = train_lightgbm(data, i, PARAMETERS, seed, MAX_ROUNDS, PATIENCE, PRIOR)
        for split, values in found.items():
            rows = rows_in_memory(data, split)
            known = known_rows(rows, i)
            predicted = model.predict(lightgbm_inputs(data, i, split, PRIOR)).reshape(len(known), -1)[known]
            values[task.name] = task.metric_values(predicted, rows.labels[:, i].numpy()[known])
    return found
