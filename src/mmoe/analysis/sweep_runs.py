"""Collect the runs of a sweep: their metrics, and the options that differ."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mmoe.analysis.sweep_lightgbm import read_baseline
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.run import Run
from mmoe.training import run_folder, stored_config

# Runs that differ only in these keys count as the same. Results are averaged over seeds and replicas, and the
# other keys in this list do not affect metrics.
IGNORED_KEYS = (
    "seed", "data.seed", "replicas", "data.replicas", "resume", "logger", "data.cache_dir",
    "callbacks.progress_bar", "figures", "card", "trust",
)  # fmt: skip
LIGHTGBM = "LightGBM"


def sweep_runs(folder: Path | str) -> pd.DataFrame:
    """List every finished run below `folder`, with one line per seed.

    The columns are `run`, `seed`, each config key that differs, `parameters`, the best `epoch`, and the
    metrics `{split}/{task}/{metric}`. If no key differs, one column `all runs` holds a dash, so that the
    table still has something to group by. The results of LightGBM in lightgbm.json are lines too, without
    `parameters` and `epoch`; their `model` is `LightGBM`.

    Raises:
        UserError: the folder is one run, no run has finished, or the runs differ in tasks, rows or the
            monitored metric.
    """
    folder = Path(folder)
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: must be a folder with several runs, such as a sweep's, but is one run")
    finished, unfinished = _find_runs(folder)
    configs = [stored_config.read_plain_config(path) for path in finished]
    schemas = [run_folder.read_schema(path) for path in finished]
    all_metrics = [run_folder.read_metrics(path) for path in finished]
    _check_comparable(finished, schemas, all_metrics)
    baseline = read_baseline(folder, Run(finished[0]))
    options = _with_class_names([dict(_flatten(config)) for config in configs])
    varied = _varied(options)
    if baseline and "model" not in varied:
        options = [option | {"model": _class_name(option["model._target_"])} for option in options]
        varied.append("model")
    varied = varied or ["all runs"]
    names = [str(path.relative_to(folder)) for path in finished]
    lines = list(_run_lines(names, options, all_metrics, varied))
    lines += _baseline_lines(baseline, varied)
    frame = pd.DataFrame(lines).drop_duplicates([*varied, "seed"], ignore_index=True)  # repeated runs
    frame = frame.astype({"parameters": "Int64", "epoch": "Int64"})
    frame.attrs = {
        "varied": varied,
        "runs": {
            name: {**{key: _shown(option[key]) for key in varied if key in option}, "seed": metrics["seed"]}
            for name, option, metrics in zip(names, options, all_metrics, strict=True)
        },
        "has_lightgbm": bool(baseline),
        "unfinished": [str(path.relative_to(folder)) for path in unfinished],
        "tasks": {task.name: task.main_metric for task in schemas[0].tasks},
        "monitor": all_metrics[0]["monitor"],
        "larger_is_better": _best_mode(configs[0]) == "max",
        "row_origin": schemas[0].row_origin,
    }
    return frame


def _find_runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """The finished and the unfinished runs below a folder.

    Raises:
        UserError: no run has finished.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = [path.parent for path in sorted(folder.rglob("config.yaml"))]
    found = [path for path in found if (path / "schema.json").is_file()]
    top_level = [path for path in found if not _is_extracted(path)]
    finished = [path for path in top_level if run_folder.has_ended(path)]
    if not finished:
        started = f", of {len(top_level)} that were started" if top_level else ""
        raise UserError(f"{folder}: has no finished run{started}")
    return finished, [path for path in top_level if path not in finished]


def _is_extracted(run: Path) -> bool:
    """Whether `mmoe.extract` made a run folder inside that of a run with replicas."""
    return run.name.startswith("replica_") and (run.parent / "config.yaml").is_file()


def _check_comparable(
    runs: Sequence[Path], schemas: Sequence[Schema], all_metrics: Sequence[Mapping[str, Any]]
) -> None:
    """Raise UserError unless all runs have the same tasks, rows and monitored metric."""
    first, monitor = schemas[0], all_metrics[0]["monitor"]
    for path, schema, metrics in zip(runs, schemas, all_metrics, strict=True):
        if (schema.tasks, schema.num_rows, schema.files) != (first.tasks, first.num_rows, first.files):
            raise UserError(f"{path}: has other tasks or rows than {runs[0]}, so they cannot be compared")
        if metrics["monitor"] != monitor:
            other = f"but {runs[0]} by {monitor}"
            raise UserError(f"{path}: chose its epoch by {metrics['monitor']}, {other}")


def _run_lines(
    names: Sequence[str],
    options: Sequence[Mapping[str, Any]],
    all_metrics: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A line of the table for each seed of each run."""
    for name, option, metrics in zip(names, options, all_metrics, strict=True):
        for run in metrics.get("runs", [metrics]):
            line = {"run": name, "seed": run["seed"]}
            line |= {key: _shown(option.get(key, "-")) for key in varied}
            line |= {"parameters": metrics["parameters"], "epoch": run["epoch"]}
            yield line | _metric_columns(run)


def _baseline_lines(results: Iterable[Mapping[str, Any]], varied: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line of the table for each seed of LightGBM."""
    for found in results:
        line = {"run": LIGHTGBM, "seed": found["seed"], **dict.fromkeys(varied, "-"), "model": LIGHTGBM}
        yield line | _metric_columns(found)


def _metric_columns(found: Mapping[str, Any]) -> dict[str, float]:
    """The validation and test metrics of a run, by the name of their column."""
    return {
        f"{split}/{task}/{name}": value
        for split in ("val", "test")
        for task, values in found.get(split, {}).items()
        for name, value in values.items()
    }


def _best_mode(config: dict[str, Any]) -> str | None:
    """`max` or `min`: whether the best epoch has the largest or the smallest value of its metric."""
    best = (config["callbacks"] or {}).get("best") or {}
    return best.get("mode") or config.get("monitor_mode")


def _with_class_names(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where runs differ in the class of a part, such as `model`, let the part's key hold the class's name.

    Keys of the part that only depend on its class are left out.
    """
    keys = sorted({key for option in options for key in option if key.endswith("._target_")}, key=len)
    for key in keys:
        part = key.removesuffix("._target_")
        classes = [_class_name(option.get(key, "-")) for option in options]
        if len(set(classes)) == 1:
            continue
        for name in {name for option in options for name in option if name.startswith(f"{part}.")}:
            values = {
                (own, json.dumps(option.get(name))) for own, option in zip(classes, options, strict=True)
            }
            if len(values) == len(set(classes)):
                options = [{k: v for k, v in option.items() if k != name} for option in options]
        options = [{part: own, **option} for own, option in zip(classes, options, strict=True)]
    return options


def _class_name(path: Any) -> str:
    return str(path).rpartition(".")[-1]


def _varied(options: list[dict[str, Any]]) -> list[str]:
    """List the keys whose values differ. Of keys that always change together, keep the least nested one."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for option in options for key in option):
        values = tuple(json.dumps(option.get(key)) for option in options)
        if len(set(values)) > 1:
            alike.setdefault(values, []).append(key)
    return [min(group, key=lambda key: key.count(".")) for group in alike.values()]


def _flatten(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the values of a configuration, without `IGNORED_KEYS`."""
    if key in IGNORED_KEYS:
        return
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flatten(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _shown(value: Any) -> Any:
    """A value of a configuration as a number or text."""
    return value if isinstance(value, int | float | str) else json.dumps(value)
