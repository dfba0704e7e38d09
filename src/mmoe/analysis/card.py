"""The model card of a run: one page with its data, tasks, metrics, gates, figures and limits.

After Mitchell et al., Model Cards for Model Reporting (FAT* 2019).

N rows, L logits of all tasks, T tasks, E experts.
"""

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import OmegaConf

import mmoe
from mmoe.analysis.card_data import HELD_OUT_NAMES, data_section
from mmoe.analysis.drawing import metric_name
from mmoe.analysis.limits import limits
from mmoe.analysis.page import block, code, number_of, table, write_page
from mmoe.intervals import rough_intervals
from mmoe.run import Run
from mmoe.tasks import Task
from mmoe.tasks.task import percent
from mmoe.training.gate_statistics import POLARISED
from mmoe.training.report import ROW_ORIGINS, metric_text
from mmoe.training.stored_config import RUN_FOLDER_TEXT
from mmoe.training.trust import ALLOWED_BASES, built_packages

MAX_EXPERTS, MAX_LINES = 16, 400  # that the card lists
# The figures that a card shows, in this order, and how to read them.
CAPTIONS = {
    "training_curves": "Validation metrics and, with gates, the effective number of experts, by epoch.",
    "gate_weights": "The mean weight of each expert for each task, over the test rows. Each row sums to 1.",
    "gate_distributions": "How much the gate weights differ between test rows.",
    "balance": "Weights of tasks by epoch; if measured, cosines of gradients and how often they conflict.",
    "roc": "ROC curves. A curve further up and to the left is better.",
    "precision_recall": "Precision and recall for all thresholds. A curve further up is better.",
    "calibration": "On the diagonal, predicted probabilities equal the observed shares.",
}
PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "hydra-core", "numpy", "pandas", "pyarrow")


def write_card(run: Run) -> None:
    """Write card.md and card.html to the run folder, with the figures that figures/ holds."""
    test_labels, halves = _labels_and_intervals(run)
    sections: dict[str, Callable[[], Iterator[str]]] = {
        "Metrics": lambda: _metrics(run, halves),
        "Limits": lambda: (f"- {one}\n" for one in limits(run, test_labels)),
        "Tasks": lambda: _tasks(run, test_labels),
        "Gates": lambda: _gates(run),
        "Figures": lambda: _figures(run),
        "Data": lambda: data_section(run),
        "Training": lambda: _training(run),
        "Use": lambda: _use(run),
        "Configuration": lambda: _configuration(run),
        "Versions": _versions,
    }
    name = "/".join(run.folder.absolute().parts[-2:])
    text = [f"# Model card: {code(name)}\n\n{_summary(run)}\n"]
    for heading, section in sections.items():
        if content := "".join(section()).strip():
            text.append(f"## {heading}\n\n{content}\n")
    write_page(run.folder, "card", f"Model card: {name}", "\n".join(text))


def _summary(run: Run) -> str:
    schema = run.schema
    model = str(run.config.model._target_).rpartition(".")[2]
    tasks, columns = number_of(len(schema.tasks), "task"), number_of(len(schema.input_columns), "column")
    return (
        f"{code(model)} predicts {tasks} from {columns}. It was trained on"
        f" {schema.num_rows.get('train', 0):,} rows ({ROW_ORIGINS[schema.row_origin]})."
    )


def _labels_and_intervals(run: Run) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The known test labels of each task, and half intervals by split, task and metric.

    Replicas have intervals over the replicas. If each has other test rows, there are no labels.
    """
    of_replicas = run.metrics.get("half_interval", {})
    if not (run.folder / "predictions.parquet").exists():
        return {}, of_replicas
    frame, tasks = run.predictions, run.schema.tasks
    if f"{tasks[0].name}_label" not in frame:
        return {}, of_replicas
    encoded = [_encoded(task, frame[f"{task.name}_label"]) for task in tasks]
    labels, known = (np.stack(parts, axis=1) for parts in zip(*encoded, strict=True))  # [N, T] each
    by_task = {task.name: labels[known[:, i], i] for i, task in enumerate(tasks)}
    if run.config.replicas > 1:
        return by_task, of_replicas
    columns = [name for task in tasks for name in task.prediction_columns[-task.num_outputs :]]
    predicted = frame[columns].to_numpy(np.float64)  # [N, L]
    return by_task, {"test": rough_intervals(tasks, predicted, labels, known)}


def _encoded(task: Task, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] of predictions.parquet as numbers, 0 where they are unknown, and whether each is known."""
    if not pd.api.types.is_numeric_dtype(values):  # names of classes
        return task.encode(values)
    known = values.notna().to_numpy()
    return np.where(known, values.to_numpy(np.float64), 0.0), known


def _metrics(run: Run, halves: Mapping[str, Any]) -> Iterator[str]:
    metrics, tasks = run.metrics, run.schema.tasks
    counts = [
        f"{metrics['num_rows'][s]:,} {name}"
        for s, name in HELD_OUT_NAMES.items()
        if metrics["num_rows"].get(s)
    ]
    if not counts:
        yield "No row was tested.\n"
        return
    yield f"Best epoch, on {' and '.join(counts)} rows.\n\n"
    for names in dict.fromkeys(tuple(task.metric_names) for task in tasks):
        lines = []
        for task in (task for task in tasks if tuple(task.metric_names) == names):
            for split in (split for split in HELD_OUT_NAMES if split in metrics):
                values, half = metrics[split][task.name], halves.get(split, {}).get(task.name, {})
                texts = [metric_text(values[name], half.get(name, math.nan)) for name in names]
                lines.append([code(task.name), HELD_OUT_NAMES[split], *texts])
        header = ["task", "rows", *map(metric_name, names)]
        yield table(header, lines, [False, False, *[True] * len(names)]) + "\n"


def _tasks(run: Run, test_labels: Mapping[str, np.ndarray]) -> Iterator[str]:
    lines = []
    for i, task in enumerate(run.schema.tasks):
        labels = test_labels.get(task.name)
        where = (
            f", where {code(task.where)} is {', '.join(map(code, task.where_levels))}" if task.where else ""
        )
        count = "-" if labels is None else f"{len(labels):,}"
        found = "-" if labels is None or not len(labels) else task.describe_labels(labels, code)
        name = code(task.name) + (" (main task)" if i == 0 and len(run.schema.tasks) > 1 else "")
        lines.append([name, task.kind, code(task.column) + where, count, found])
    header = ["task", "kind", "label column", "known test labels", "what they are"]
    yield table(header, lines, [False, False, False, True])


def _gates(run: Run) -> Iterator[str]:
    """Mean gate weights of the validation rows in the best epoch, from history.csv.

    Nothing for replicas, or for one expert.
    """
    history, tasks = run.history, run.schema.tasks
    if run.config.replicas > 1 or f"val/{tasks[0].name}/gate_1" not in history:
        return
    best = history[history["epoch"] == run.metrics["epoch"]]
    if not len(best):
        return
    line = best.iloc[-1]
    count = 0
    while f"val/{tasks[0].name}/gate_{count}" in line:
        count += 1
    shown = range(count) if count <= MAX_EXPERTS else ()
    header = ["task", "effective experts", "polarised rows", *(f"expert {e}" for e in shown)]
    lines = [
        [
            code(task.name), f"{line[f'val/{task.name}/effective_experts']:.2f}",
            percent(line[f"val/{task.name}/polarised_rows"]),
            *(f"{line[f'val/{task.name}/gate_{e}']:.3f}" for e in shown),
        ]
        for task in tasks
    ]  # fmt: skip
    unused = int(line["val/gates/unused_experts"])
    verb = "is" if unused == 1 else "are"
    used = f" {unused} of the {count} experts {verb} used by no gate." if unused else ""
    yield (
        f"Means over the validation rows in the best epoch.{used} The effective number of experts is exp(H),"
        " where H is the mean entropy of a row's weights. A row is polarised if one expert has more than"
        f" {POLARISED} of its weight.\n\n"
    )
    yield table(header, lines, [False, *[True] * (len(header) - 1)])


def _figures(run: Run) -> Iterator[str]:
    for name, caption in CAPTIONS.items():
        if (run.folder / f"figures/{name}.png").is_file():
            is_by_epoch = name in ("training_curves", "balance")
            band = " A band is the range over replicas." if is_by_epoch and run.config.replicas > 1 else ""
            yield f"![{name.replace('_', ' ')}](figures/{name}.png)\n\n{caption}{band}\n\n"


def _training(run: Run) -> Iterator[str]:
    metrics, config = run.metrics, run.config
    rate = metrics["learning_rate"]
    model = {key: value for key, value in config.model.items() if key != "_target_"}
    facts = {
        "model": code(config.model._target_), **{f"model.{key}": code(value) for key, value in model.items()},
        "parameters": f"{metrics['parameters']:,}", "steps": f"{metrics['steps']:,}",
        "rows of a step": f"{metrics['global_batch']:,}", "learning rate": "-" if rate is None else str(rate),
        "epochs": str(metrics["epochs"]), "best epoch": _best_epoch(metrics),
        "chosen by": code(metrics["monitor"]) if metrics["monitor"] else "nothing: the last",
        "seed": str(metrics["seed"]), "replicas": str(config.replicas),
        "processes": str(metrics["processes"]),
        "threads of a process": str(metrics["threads"]), "seconds": f"{metrics['seconds']:.1f}",
    }  # fmt: skip
    if config.get("balance") and len(run.schema.tasks) > 1:
        options = {key: value for key, value in config.balance.items() if key != "_target_"}
        facts["balancing"] = code(config.balance.get("_target_"))
        facts |= {f"balance.{key}": code(value) for key, value in options.items()}
    yield table(["option", "value"], ([name, value] for name, value in facts.items()))


def _best_epoch(metrics: Mapping[str, Any]) -> str:
    if "runs" not in metrics:
        return str(metrics["epoch"])
    epochs = [run["epoch"] for run in metrics["runs"]]
    return f"{min(epochs)} to {max(epochs)}"


def _use(run: Run) -> Iterator[str]:
    replica = ", replica=0" if run.config.replicas > 1 else ""
    own = [name for name in built_packages(run.config) if name not in ALLOWED_BASES]
    trust = f", trust={json.dumps(own)}" if own else ""
    yield "The folder with this card holds the run. `frame` is a DataFrame of raw rows.\n\n"
    yield block(f'import mmoe\n\nrun = mmoe.load("."{trust})\nscores = run.predict(frame{replica})', "python")


def _configuration(run: Run) -> Iterator[str]:
    plain: Any = OmegaConf.to_container(run.config)
    columns = plain["data"].pop("columns", None)  # the data section lists them
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    text = text.replace(str(run.folder.absolute()), RUN_FOLDER_TEXT)
    lines = text.splitlines()
    without = ", without `data.columns`" if columns else ""
    cut = f" These are its first {MAX_LINES} of {len(lines)} lines." if len(lines) > MAX_LINES else ""
    yield f"From `config.yaml`{without}.{cut}\n\n"
    yield block("\n".join(lines[:MAX_LINES]), "yaml")


def _versions() -> Iterator[str]:
    versions = {"mmoe": mmoe.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a package may be importable without metadata
            continue
    versions["system"] = f"{platform.system()} on {platform.machine()}"
    yield table(["package", "version"], ([name, code(text)] for name, text in versions.items()))
