"""Compare mmoe with LightGBM (one model per task) on the same rows and splits.

usage: python scripts/compare_gbdt.py data.dir=... [option=value ...]

    features=paper,all   feature sets
    experiments=census,census_best,census_best_ensemble   experiments of mmoe
    runs=10              runs of each model; each has its own seed and its own split of the test file
    trials=20            trials in LightGBM's search, for each task and feature set, on split 0
    rounds=3000          upper limit for boosting rounds; the validation rows choose the number
    threads=2            threads of each training
    folder=runs/compare_gbdt   run folders and results; finished ones are used again
    out=docs/results/gbdt      folder for the table and the results of all runs
    sample=false         true: allow the bundled sample, which is synthetic

All other arguments are overrides for the trainings of mmoe. A stopped script continues when it is started
again. It needs pip install 'mmoe[bench]'.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from commands import compose_config, train_once
from omegaconf import OmegaConf
from options import parse, some_of, stop
from report_text import describe_rows, mean_text, table, write_report
from stored_results import cached, store_settings
from tqdm import tqdm

from mmoe import CONF_DIR, load
from mmoe.analysis.lightgbm_training import lightgbm_inputs, train_lightgbm
from mmoe.build import build
from mmoe.data.splits import Dataset
from mmoe.training.task_metrics import TaskMetrics

DEFAULTS = {
    "features": "paper,all", "experiments": "census,census_best,census_best_ensemble", "runs": "10",
    "trials": "20", "rounds": "3000", "threads": "2", "folder": "runs/compare_gbdt",
    "out": "docs/results/gbdt", "sample": "false",
}  # fmt: skip
LIGHTGBM = "LightGBM, one model per task"
# The parts of a configuration that the results depend on.
RESULT_PARTS = (
    "data", "inputs", "model", "objective", "learner", "trainer", "callbacks", "activation",
    "gate_temperature", "balance", "monitor", "monitor_mode",
)  # fmt: skip
PATIENCE = 100  # boosting rounds without a better validation AUROC
NUM_TIMED = 5  # the time to predict is the median over this many predictions
Results = dict[str, Any]  # test AUROC by task; seconds to train and to predict; bytes of the model


def main() -> None:
    """Train all models and write the table."""
    minimums = {"runs": 2, "trials": 1, "rounds": 1, "threads": 1}
    options, overrides = parse(sys.argv[1:], DEFAULTS, {"sample": ("true", "false")}, minimums)
    try:
        import lightgbm  # noqa: F401
        import optuna
    except ModuleNotFoundError as error:
        stop(f"needs {error.name}: pip install 'mmoe[bench]'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(int(options["threads"]))
    os.environ["OMP_NUM_THREADS"] = options["threads"]  # for the trainings, which are processes of their own
    overrides.append(f"data.source={'auto' if options['sample'] == 'true' else 'official'}")
    folder = Path(options["folder"])
    known = sorted(path.stem for path in (CONF_DIR / "features").glob("*.yaml"))
    features = some_of(options, "features", known)
    experiments = options["experiments"].split(",")
    if not set(experiments) <= {path.stem for path in (CONF_DIR / "experiment").glob("census*.yaml")}:
        stop(f"experiments={options['experiments']}: must be experiments on census rows")
    store_settings(folder / "options.json", settings_of(options, experiments, overrides), overrides)
    count = int(options["runs"])
    found: list[Results] = []
    with tqdm(total=len(features) * count * (1 + len(experiments)), unit="run") as bar:
        for name in features:
            given = [f"features={name}", *overrides]
            tuned = cached(folder / name / "lightgbm.json", partial(tune, given, options))
            for run_number in range(count):
                trainings = {
                    LIGHTGBM: ("lightgbm", partial(train_boosters, given, run_number, tuned, options))
                }
                for experiment in experiments:
                    train = partial(train_mmoe, folder / name, given, run_number, experiment)
                    trainings[f"mmoe, {experiment}"] = (experiment, train)
                for label, (stem, train) in trainings.items():
                    results = cached(folder / name / f"{stem}-{run_number}.json", train)
                    found.append({"features": name, "model": label, "run": run_number} | results)
                    bar.update()
    report(pd.DataFrame(found), options, overrides)


def settings_of(
    options: Mapping[str, str], experiments: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    """What the results in a folder depend on: options, and parts of the experiments' configurations."""
    settings: dict[str, Any] = {name: options[name] for name in ("trials", "rounds", "threads")}
    for experiment in experiments:
        config = OmegaConf.to_container(compose_config(f"experiment={experiment}", *overrides), resolve=False)
        settings[experiment] = {key: config[key] for key in RESULT_PARTS}
    return settings


def dataset(overrides: Sequence[str], split_seed: int) -> Dataset:
    """The rows of a training with these overrides."""
    data = [o for o in overrides if o.split("=")[0].split(".")[0] in ("features", "data")]
    config = compose_config("experiment=census", *data, f"data.split_seed={split_seed}")
    return build(config, "data").dataset  # type: ignore[no-any-return]


def train_booster(
    data: Dataset, task: int, parameters: Mapping[str, Any], seed: int, options: Mapping[str, str]
) -> Any:
    """LightGBM's model of one task. The validation AUROC chooses the number of rounds."""
    given = {**parameters, "num_threads": int(options["threads"])}
    return train_lightgbm(data, task, given, seed, int(options["rounds"]), PATIENCE)


def tune(overrides: Sequence[str], options: Mapping[str, str]) -> dict[str, Any]:
    """Search each task's parameters with a tree-structured Parzen estimator, for the validation AUROC."""
    import optuna

    data, best = dataset(overrides, 0), {}
    for number, task in enumerate(data.schema.tasks):

        def objective(trial: Any, number: int = number) -> float:
            parameters = {
                "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.2, log=True),
                "num_leaves": trial.suggest_int("num_leaves", 7, 127, log=True),
                "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 5, 200, log=True),
                "feature_fraction": trial.suggest_float("feature_fraction", 0.2, 1.0),
                "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
                "bagging_freq": 1,
                "lambda_l2": trial.suggest_float("lambda_l2", 1e-3, 30.0, log=True),
                "max_bin": trial.suggest_categorical("max_bin", [255, 1023]),
            }
            trial.set_user_attr("parameters", parameters)
            booster = train_booster(data, number, parameters, 0, options)
            return float(booster.best_score["valid_0"]["auc"])

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(objective, int(options["trials"]))
        parameters = study.best_trial.user_attrs["parameters"]
        best[task.name] = {"parameters": parameters, "val_auroc": study.best_value}
    return best


def train_boosters(
    overrides: Sequence[str], run_number: int, tuned: dict[str, Any], options: Mapping[str, str]
) -> Results:
    """Train one LightGBM model per task. Times and bytes are the totals of these models."""
    data = dataset(overrides, run_number)
    start = time.perf_counter()
    boosters = [
        train_booster(data, i, tuned[task.name]["parameters"], run_number, options)
        for i, task in enumerate(data.schema.tasks)
    ]
    seconds, labels = time.perf_counter() - start, data.splits["test"].labels
    inputs = [lightgbm_inputs(data, i, "test") for i in range(len(boosters))]

    def predict_all() -> np.ndarray:
        pairs = zip(boosters, inputs, strict=True)
        return np.stack([booster.predict(x, raw_score=True) for booster, x in pairs], 1)

    logits, seconds_to_predict = timed(predict_all)
    values = TaskMetrics(data.schema.tasks)("test", torch.from_numpy(logits).float(), labels)
    found = {task.name: float(values[f"test/{task.name}/auroc"]) for task in data.schema.tasks}
    size = sum(len(booster.model_to_string().encode()) for booster in boosters)
    return found | {"train": seconds, "predict": seconds_to_predict, "bytes": size}


def train_mmoe(folder: Path, overrides: Sequence[str], run_number: int, experiment: str) -> Results:
    """Train an experiment of mmoe."""
    given = [f"data.split_seed={run_number}", f"seed={run_number}", "trainer=cpu", "figures=false"]
    train_once(folder / f"{experiment}-{run_number}", f"experiment={experiment}", *overrides, *given)
    run, rows = load(folder / f"{experiment}-{run_number}"), dataset(overrides, run_number).splits["test"]
    network = run.network()
    with torch.inference_mode():
        _, seconds_to_predict = timed(lambda: network(rows.levels, rows.numbers))
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    found = {task: values["auroc"] for task, values in run.metrics["test"].items()}
    return found | {"train": run.metrics["seconds"], "predict": seconds_to_predict, "bytes": size}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and the median of its seconds."""
    seconds = []
    for _ in range(NUM_TIMED):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds))


def report(frame: pd.DataFrame, options: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Write and print the table, with intervals, and write the results of all runs."""
    schema = dataset([f"features={frame['features'][0]}", *overrides], 0).schema
    tasks = [task.name for task in schema.tasks]
    lines = []
    for (features, model), runs in frame.groupby(["features", "model"], sort=False):
        trees = frame[(frame["features"] == features) & (frame["model"] == LIGHTGBM)]
        cells = [str(features), str(model)]
        for task in tasks:
            values = runs[task].reset_index(drop=True)
            cells.append(mean_text(values))
            difference = values - trees[task].reset_index(drop=True)
            shown = mean_text(difference, "+.4f")
            cells.append("-" if model == LIGHTGBM else shown)
        cells += [f"{runs['train'].median():.0f}", f"{runs['predict'].median() * 1000:.0f}"]
        lines.append([*cells, f"{runs['bytes'].median() / 2**20:.2f}"])
    threads = "one thread" if options["threads"] == "1" else f"{options['threads']} threads"
    header = ["features", "model"]
    for task in tasks:
        header += [f"{task}, test AUROC", "minus LightGBM"]
    text = [
        "# MMoE and gradient boosting",
        f"{describe_rows(schema)} Each model is trained in {options['runs']} runs. Every run has its own seed"
        " and its own split of the test file into validation and test rows, and all models use the same"
        " splits. `±` is half the 95 % confidence interval of the mean (Student's t), and differences are"
        " paired by run.",
        f"LightGBM's parameters are the best of {options['trials']} trials for each task and feature set, by"
        " the validation AUROC on split 0. The validation rows of each split choose the number of boosting"
        " rounds and the epoch of mmoe.",
        table([*header, "training (s)", "prediction (ms)", "MB"], lines),
        f"Times are medians, with {threads}. LightGBM's training time covers both models, but not the reading"
        " of rows; mmoe's is from reading the rows to the end of the test. The prediction time is for all"
        " test rows and both tasks.",
    ]
    write_report(Path(options["out"]), "gbdt", text, frame)


if __name__ == "__main__":
    main()
