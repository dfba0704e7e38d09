"""Compare MMoE, a shared bottom, single-task networks and LightGBM on public tables.

usage: MMOE_TABLES_DIR=... python scripts/compare_tables.py [option=value ...] [overrides]

    tables=hillstrom,datacar,movielens,student,ai4i   data of scripts/other_tables
    trials=16            trials in the random search of each contestant, for each task
    runs=8               seeds of each contestant with the chosen settings
    resamples=500        resamples of the test rows, for the intervals of differences
    folder=runs/compare_tables   results of searches and predictions; finished ones are used again
    out=docs/results/tables      folder for the tables and the results of all runs

MMOE_TABLES_DIR is the folder of the tables. All contestants have the same training, validation and test rows,
and the same number of trials. Validation rows alone choose settings. A stopped script continues when it is
started again. All other arguments are overrides for the networks. It needs pip install 'mmoe[bench]'.

R seeds, N rows, W outputs of a task.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from join_movielens import join
from omegaconf import OmegaConf
from options import parse, some_of, stop
from stored_results import cached, store_settings
from table_contestants import Contestant, check_validation_rows, contestants, find_settings, labels_of
from table_networks import Overrides, composed, encoded_rows
from table_report import CONSTANT, MMOE, Results, compare, constant_prediction, write_report
from tqdm import tqdm

from mmoe.atomic import write
from mmoe.data.splits import Dataset

DEFAULTS = {
    "tables": "hillstrom,datacar,movielens,student,ai4i", "trials": "16", "runs": "8", "resamples": "500",
    "folder": "runs/compare_tables", "out": "docs/results/tables",
}  # fmt: skip
SPLIT_SEED = 2026  # chosen before any model was trained on these splits
CONFIGS = Path(__file__).parent / "other_tables"
# The parts of a configuration that the results depend on.
RESULT_PARTS = (
    "data", "inputs", "objective", "learner", "trainer", "callbacks", "activation", "gate_temperature",
    "balance", "monitor", "monitor_mode",
)  # fmt: skip


def main() -> None:
    """Search, train and test all contestants, and write the tables."""
    options, overrides = parse(sys.argv[1:], DEFAULTS, {}, {"runs": 2, "trials": 1, "resamples": 1})
    try:
        import lightgbm  # noqa: F401
    except ModuleNotFoundError as error:
        stop(f"needs {error.name}: pip install 'mmoe[bench]'")
    known = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
    names = some_of(options, "tables", known)
    if "MMOE_TABLES_DIR" not in os.environ:
        stop("MMOE_TABLES_DIR: must be set to the folder of the tables")
    folder = Path(options["folder"]).absolute()
    arguments = {name: table_overrides(name, folder, overrides) for name in names}
    spaces: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "spaces.yaml"))
    settings: dict[str, Any] = {"runs": options["runs"], "trials": options["trials"], "spaces": spaces}
    for name in names:
        config: Any = OmegaConf.to_container(composed(arguments[name]), resolve=False)
        settings[name] = {key: config[key] for key in RESULT_PARTS}
    store_settings(folder / "options.json", settings, overrides)
    for name in names:
        check_validation_rows(name, encoded_rows(arguments[name]))

    results = Results([], [], [], {})
    for name in names:
        data = encoded_rows(arguments[name])
        results.num_rows[name] = data.schema.num_rows
        for number, task in enumerate(tqdm(data.schema.tasks, desc=name, unit="task")):
            predicted = {}
            for contestant in contestants(name, arguments[name], number, spaces):
                found, predicted[contestant.label] = search_and_test(
                    contestant, data, number, folder, options
                )
                results.searches.append({"table": name, "task": task.name, "model": contestant.label} | found)
            labels, known = labels_of(data, number, "train")
            constant = constant_prediction(task, labels[known])
            predicted[CONSTANT] = np.broadcast_to(constant, predicted[MMOE].shape)
            compared = compare(task, predicted, *labels_of(data, number, "test"), int(options["resamples"]))
            for table, lines in zip((results.runs, results.differences), compared, strict=True):
                table += [{"table": name, "task": task.name} | line for line in lines]
    write_report(results, options)


def search_and_test(
    contestant: Contestant, data: Dataset, number: int, folder: Path, options: Mapping[str, str]
) -> tuple[dict[str, Any], np.ndarray]:
    """The result of a contestant's search for a task, and its test predictions [R, N, W]."""
    name = f"{contestant.table}/{data.schema.tasks[number].name}/{contestant.label.lower().replace(' ', '_')}"
    find = partial(find_settings, contestant, data, number, name, int(options["trials"]))
    found = cached(folder / name / "search.json", find)
    path = folder / name / "test.npy"
    if not path.exists():
        predicted = contestant.predict(found["settings"], range(int(options["runs"])), "test")
        write(path, lambda scratch: np.save(scratch, predicted))
    return found, np.load(path)


def table_overrides(name: str, folder: Path, overrides: Sequence[str]) -> Overrides:
    """The arguments of mmoe.train for a table. The file of movielens is made first."""
    search_path = f"hydra.searchpath=[file://{CONFIGS.absolute()}]"
    arguments = [search_path, "experiment=table", f"data={name}", f"data.split_seed={SPLIT_SEED}"]
    if name == "movielens":
        joined = folder / "movielens.parquet"
        if not joined.exists():
            join(Path(os.environ["MMOE_TABLES_DIR"]) / "movielens_small", joined)
        arguments.append(f"data.train={joined}")
    return (*arguments, "trainer=cpu", *overrides)


if __name__ == "__main__":
    main()
