"""The runs of a sweep side by side: what was varied, and what came of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mmoe import runs
from mmoe.errors import UserError
from mmoe.intervals import half_interval
from mmoe.training.tasks import METRICS

# Not what a sweep is about: runs are averaged over seeds, and the others do not change a result.
LEFT_OUT = (
    "seed", "data.seed", "replicas", "resume", "logger", "data.cache_dir", "callbacks.progress_bar",
    "figures", "trust",
)  # fmt: skip

MONITORED = "(monitored)"  # no key of a configuration


def runs_of(folder: Path | str) -> pd.DataFrame:
    """Every finished run below `folder`, one line a seed: `run`, `seed`, what differs, parameters, metrics.

    Metrics are named `{split}/{task}/{metric}`; `epoch` is the best one. Where nothing but the seed differs,
    there is a column `runs`, the same in all.

    Raises:
        UserError: there is no finished run, or they are of different tasks or rows, or monitor different
            metrics.
    """
    folder = Path(folder)
    started = [path.parent for path in sorted(folder.rglob("config.yaml"))]
    started = [path for path in started if (path / "schema.json").is_file()]
    found = [path for path in started if not set(path.parents) & set(started)]  # no extracted replica
    ended = [path for path in found if (path / "metrics.json").is_file()]
    if not ended:
        raise UserError(f"{folder}: has no finished run, of {len(found)} that were started")
    configs = [runs.stored_config(path) for path in ended]
    schemas = [runs.read_schema(path) for path in ended]
    found_metrics = [runs.read_metrics(path) for path in ended]
    first, monitor = schemas[0], found_metrics[0]["monitor"]
    for path, metrics, schema in zip(ended, found_metrics, schemas, strict=True):
        if (schema.tasks, schema.num_rows, schema.files) != (first.tasks, first.num_rows, first.files):
            raise UserError(f"{path}: has other tasks or rows than {ended[0]}, so they do not compare")
        if metrics["monitor"] != monitor:
            raise UserError(f"{path}: chose its epoch by {metrics['monitor']}, but {ended[0]} by {monitor}")
    options = [dict(_flat(config)) for config in configs]
    varied = _varied(options) or ["runs"]
    lines = []
    for path, option, metrics in zip(ended, options, found_metrics, strict=True):
        for run in metrics.get("runs", [metrics]):
            line = {"run": str(path.relative_to(folder)), "seed": run["seed"]}
            line |= {key: _shown(option.get(key, "all")) for key in varied}
            line |= {"parameters": metrics["parameters"], "epoch": run["epoch"]}
            for split in ("val", "test"):
                for task, values in run.get(split, {}).items():
                    line |= {f"{split}/{task}/{name}": value for name, value in values.items()}
            lines.append(line)
    frame = pd.DataFrame(lines).drop_duplicates([*varied, "seed"], ignore_index=True)  # a run made twice
    frame.attrs = {
        "varied": varied,
        "unfinished": [str(path.relative_to(folder)) for path in found if path not in ended],
        "tasks": {task.name: next(iter(METRICS[task.kind])) for task in first.tasks},
        "monitor": monitor,
        "larger_is_better": ((configs[0]["callbacks"] or {}).get("best") or {}).get("mode", "max") == "max",
        "rows": first.rows,
    }
    return frame


def _varied(options: list[dict[str, Any]]) -> list[str]:
    """The keys whose values differ; of those that differ alike, as interpolations do, the shortest."""
    keys = dict.fromkeys(key for option in options for key in option)
    values = {key: json.dumps([option.get(key) for option in options]) for key in keys}
    different = [key for key in keys if len({json.dumps(option.get(key)) for option in options}) > 1]
    alike: dict[str, list[str]] = {}
    for key in different:
        alike.setdefault(values[key], []).append(key)
    return [min(group, key=lambda key: key.count(".")) for group in alike.values()]


def compare(folder: Path | str) -> pd.DataFrame:
    """One line for each combination of what differs between the runs below `folder`, the best one first.

    Columns: what differs; `seeds`, their number; `parameters`; then of the first metric of each task, on
    validation and test rows, the mean over seeds and `±`, half its 95 % interval (nan for one seed). The
    order is that of the mean of the metric that chose the epochs; where none did, or metrics.json does not
    have it (such as `train/loss`), it is that of the runs.

    Raises:
        UserError: as `runs_of`.
    """
    frame = runs_of(folder)
    varied, monitor = frame.attrs["varied"], frame.attrs["monitor"]
    lines = []
    for values, group in frame.groupby(varied, dropna=False, sort=False):
        line = dict(zip(varied, values, strict=True))
        line |= {"seeds": len(group), "parameters": group["parameters"].iloc[0]}
        for split in ("val", "test"):
            for task, metric in frame.attrs["tasks"].items():
                name = f"{split}/{task}/{metric}"
                if name in group:
                    line |= {name: group[name].mean(), f"{name} ±": half_interval(group[name])}
        lines.append(line | ({MONITORED: group[monitor].mean()} if monitor in frame else {}))
    table = pd.DataFrame(lines)
    if monitor in frame:
        table = table.sort_values(MONITORED, ascending=not frame.attrs["larger_is_better"], ignore_index=True)
        table = table.drop(columns=MONITORED)
    table.attrs = frame.attrs | {"is_sorted": monitor in frame}
    return table


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a configuration, but for what is left out."""
    if key in LEFT_OUT:
        return
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _shown(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else json.dumps(value)
