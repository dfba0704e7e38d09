"""Our best configurations against LightGBM, one model a task: the same rows, splits and choice of rounds.

usage: python scripts/compare_gbdt.py data.dir=... [option=value ...]

    features=paper,all   feature sets
    runs=10              each with its own split of the test file into validation and test, and its own seed
    trials=20            of LightGBM's search, for each task and feature set, on split 0's validation rows
    rounds=3000          of boosting at most; validation chooses
    threads=2            of every training
    folder=runs/compare_gbdt   run folders and results; what is there is not done again
    out=docs/results/gbdt      table and results
    sample=false         true: allow the bundled sample, whose numbers mean nothing

Anything else is an override for our trainings. It can be stopped at any time, and goes on.
Needs pip install 'mmoe[bench]'.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from options import call, parse, stop
from tables import describe_rows, table
from tqdm import tqdm

from mmoe import CONF_DIR, runs
from mmoe.atomic import write
from mmoe.build import build
from mmoe.data.encode import Dataset, Rows
from mmoe.intervals import half_interval
from mmoe.training.tasks import TaskMetrics

DEFAULTS = {
    "features": "paper,all", "runs": "10", "trials": "20", "rounds": "3000", "threads": "2",
    "folder": "runs/compare_gbdt", "out": "docs/results/gbdt", "sample": "false",
}  # fmt: skip
GBDT = "LightGBM, a model a task"
# Ours, by the experiment that each is.
EXPERIMENTS = {
    "mmoe as shipped": "census",
    "mmoe, census_best": "census_best",
    "mmoe, census_best_ensemble": "census_best_ensemble",
}
DECISIVE = ("data", "inputs", "model", "objective", "learner", "trainer")  # parts of a configuration
STOPPING = 100  # rounds without a better validation AUROC
TIMED = 5  # predictions of the test rows, of which the median counts
Found = dict[str, Any]  # test AUROC by task, seconds to train and to predict, bytes


def main() -> None:
    """Train everything, and write the table."""
    least = {"runs": 2, "trials": 1, "rounds": 1, "threads": 1}
    options, overrides = parse(sys.argv[1:], DEFAULTS, {"sample": ("true", "false")}, least)
    try:
        import lightgbm  # noqa: F401
        import optuna
    except ModuleNotFoundError as error:
        stop(f"needs {error.name}: pip install 'mmoe[bench]'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    threads = int(options["threads"])
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = options["threads"]  # of the trainings
    overrides.append(f"data.source={'auto' if options['sample'] == 'true' else 'official'}")
    folder, features = Path(options["folder"]), options["features"].split(",")
    known = sorted(path.stem for path in (CONF_DIR / "features").glob("*.yaml"))
    if not set(features) <= set(known):
        stop(f"features={options['features']}: must be some of {', '.join(known)}")
    check_same(folder / "options.json", options, overrides)
    count = int(options["runs"])
    found: list[Found] = []
    with tqdm(total=len(features) * count * (1 + len(EXPERIMENTS)), unit="run") as bar:
        for name in features:
            given = [f"features={name}", *overrides]
            tuned = kept(folder / name / "lightgbm.json", partial(tune, given, options))
            for number in range(count):
                ways = {GBDT: ("lightgbm", partial(boost, given, number, tuned, options))}
                for label, experiment in EXPERIMENTS.items():
                    ways[label] = (experiment, partial(ours, folder / name, given, number, experiment))
                for label, (stem, way) in ways.items():
                    done = kept(folder / name / f"{stem}-{number}.json", way)
                    found.append({"features": name, "model": label, "run": number} | done)
                    bar.update()
    report(pd.DataFrame(found), options, overrides)


def check_same(path: Path, options: Mapping[str, str], overrides: Sequence[str]) -> None:
    """End the script if the folder holds results of other options or experiments."""
    now: Found = {name: options[name] for name in ("trials", "rounds", "threads")}
    for experiment in EXPERIMENTS.values():
        whole = OmegaConf.to_container(composed(experiment, overrides), resolve=False)
        now[experiment] = {key: whole[key] for key in DECISIVE}
    before = kept(path, lambda: now)
    differ = [key for key in now if now[key] != before.get(key)]
    if differ:
        stop(f"folder={path.parent}: holds results of other settings of {', '.join(differ)}")


def composed(experiment: str, overrides: Sequence[str]) -> Any:
    """The configuration of a training with these overrides."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", *overrides])


def kept(path: Path, make: Callable[[], Found]) -> Found:
    """What was found before, or is now and is kept."""
    if not path.is_file():
        content = json.dumps(make(), indent=1) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lambda scratch: scratch.write_text(content))
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def dataset(overrides: Sequence[str], split_seed: int) -> Dataset:
    """The rows that a training with these overrides has."""
    data = [o for o in overrides if o.split("=")[0].split(".")[0] in ("features", "data")]
    config = composed("census", [*data, f"data.split_seed={split_seed}"])
    config.callbacks = None
    return build(config, "data").dataset  # type: ignore[no-any-return]


def table_of(rows: Rows) -> np.ndarray:
    """Numerics, then levels as LightGBM takes them: a float each, [N, M + C]."""
    return np.concatenate([rows.numerics.numpy(), rows.codes.numpy().astype(np.float32)], axis=1)


def fit(
    data: Dataset, task: int, parameters: Mapping[str, Any], seed: int, options: Mapping[str, str]
) -> Any:
    """LightGBM on one task, with the rounds that are best on the validation rows."""
    import lightgbm as lgb

    numerics, columns = len(data.schema.numeric), len(data.schema.numeric) + len(data.schema.categorical)
    levels = list(range(numerics, columns))
    train, val = (
        lgb.Dataset(table_of(rows), rows.labels[:, task].clone().numpy(), categorical_feature=levels)
        for rows in (data.splits["train"], data.splits["val"])
    )
    settings = {
        "objective": "binary", "metric": "auc", "verbosity": -1, "seed": seed,
        "num_threads": int(options["threads"]), **parameters,
    }  # fmt: skip
    stopping = lgb.early_stopping(STOPPING, verbose=False)
    return lgb.train(settings, train, int(options["rounds"]), [val], callbacks=[stopping])


def tune(overrides: Sequence[str], options: Mapping[str, str]) -> Found:
    """Parameters of each task with the best validation AUROC, by a tree-structured Parzen estimator."""
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
                "cat_smooth": trial.suggest_float("cat_smooth", 1.0, 100.0, log=True),
                "cat_l2": trial.suggest_float("cat_l2", 0.1, 100.0, log=True),
                "max_bin": trial.suggest_categorical("max_bin", [255, 1023]),
            }
            trial.set_user_attr("parameters", parameters)
            booster = fit(data, number, parameters, 0, options)
            return float(booster.best_score["valid_0"]["auc"])

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(objective, int(options["trials"]))
        parameters = study.best_trial.user_attrs["parameters"]
        best[task.name] = {"parameters": parameters, "val_auroc": study.best_value}
    return best


def boost(overrides: Sequence[str], number: int, tuned: Found, options: Mapping[str, str]) -> Found:
    """Test AUROC of LightGBM, and its cost: both tasks together."""
    data = dataset(overrides, number)
    start = time.perf_counter()
    boosters = {
        task.name: fit(data, i, tuned[task.name]["parameters"], number, options)
        for i, task in enumerate(data.schema.tasks)
    }
    seconds = time.perf_counter() - start
    test = data.splits["test"]
    x = table_of(test)
    logits, predict = timed(lambda: np.stack([b.predict(x, raw_score=True) for b in boosters.values()], 1))
    size = sum(len(booster.model_to_string().encode()) for booster in boosters.values())
    return areas(data, torch.from_numpy(logits)) | {"train": seconds, "predict": predict, "bytes": size}


def ours(folder: Path, overrides: Sequence[str], number: int, experiment: str) -> Found:
    """Test AUROC of an experiment's run, and its cost."""
    run = folder / f"{experiment}-{number}"
    given = [f"data.split_seed={number}", f"seed={number}", "trainer=cpu", "logger=none", "figures=false"]
    if not (run / "metrics.json").is_file():
        shutil.rmtree(run, ignore_errors=True)  # it was stopped
        call("train", f"experiment={experiment}", *overrides, *given, f"hydra.run.dir={run}")
    metrics = json.loads((run / "metrics.json").read_text())
    network, test = runs.load_network(run), dataset(overrides, number).splits["test"]
    with torch.inference_mode():
        _, predict = timed(lambda: network(test.codes, test.numerics))
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    found = {task: values["auroc"] for task, values in metrics["test"].items()}
    return found | {"train": metrics["seconds"], "predict": predict, "bytes": size}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the median of the seconds that it takes."""
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds))


def areas(data: Dataset, logits: torch.Tensor) -> Found:
    """Test AUROC by task, as training computes it."""
    values = TaskMetrics(data.schema.tasks)("test", logits.float(), data.splits["test"].labels)
    return {task.name: float(values[f"test/{task.name}/auroc"]) for task in data.schema.tasks}


def report(frame: pd.DataFrame, options: Mapping[str, str], overrides: Sequence[str]) -> None:
    """The table with intervals, and every run."""
    schema = dataset([f"features={frame['features'][0]}", *overrides], 0).schema
    tasks = [task.name for task in schema.tasks]
    lines = []
    for (features, model), runs_ in frame.groupby(["features", "model"], sort=False):
        trees = frame[(frame["features"] == features) & (frame["model"] == GBDT)]
        cells = [str(features), str(model)]
        for task in tasks:
            values = runs_[task].reset_index(drop=True)
            cells.append(f"{values.mean():.4f} ± {half_interval(values):.4f}")
            difference = values - trees[task].reset_index(drop=True)
            apart = f"{difference.mean():+.4f} ± {half_interval(difference):.4f}"
            cells.append("-" if model == GBDT else apart)
        cells += [f"{runs_['train'].median():.0f}", f"{runs_['predict'].median() * 1000:.0f}"]
        lines.append([*cells, f"{runs_['bytes'].median() / 2**20:.2f}"])
    threads = "one thread" if options["threads"] == "1" else f"{options['threads']} threads"
    header = ["features", "model"]
    for task in tasks:
        header += [f"{task}, test AUROC", "minus LightGBM"]
    text = [
        "# MMoE and gradient boosting",
        "",
        describe_rows(schema) + f" {options['runs']} runs of each, every one with another split of the test"
        " file into validation and test and another seed; a run of each model has the same rows. `±` is half"
        " the 95 % confidence interval of the mean (Student's t); differences are paired by run. LightGBM's"
        f" parameters are the best of {options['trials']} trials for each task and feature set, chosen by the"
        " validation rows of split 0, its rounds by those of each split; so are our epochs.",
        "",
        *table([*header, "training (s)", "prediction (ms)", "MB"], lines),
        "",
        f"Seconds are medians, with {threads}: those of LightGBM are of both models,"
        " without reading rows, ours of the whole command. Predictions are of all test rows, for both tasks.",
        "",
    ]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "runs.csv", index=False, float_format="%.6f")
    (out / "gbdt.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
