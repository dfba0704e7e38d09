"""The test metrics of scripts/compare_tables.py, their differences with intervals, and the text.

N test rows, K resamples, R seeds, W outputs of a task.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from report_text import table

from mmoe.intervals import draw_rows, half_interval
from mmoe.tasks import Task

MMOE, CONSTANT = "MMoE", "constant"
SHOWN = {
    "binary": ("auroc", "average_precision"), "multiclass": ("auroc", "accuracy"),
    "regression": ("rmse", "mae"), "count": ("poisson_deviance", "mae"),
}  # fmt: skip
Drawn = dict[str, dict[str, np.ndarray]]  # by contestant and metric: values [K], means over the seeds


class Results(NamedTuple):
    """All that the report shows: a line for each test, difference and search, and the rows of each table."""

    runs: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    searches: list[dict[str, Any]]
    num_rows: dict[str, Mapping[str, int]]


def constant_prediction(task: Task, labels: np.ndarray) -> np.ndarray:
    """The best prediction without inputs, [W]: the mean training label, or the share of each class."""
    if task.kind == "multiclass":
        return np.bincount(labels.astype(np.int64), minlength=task.num_outputs) / len(labels)
    return labels.mean(dtype=np.float64, keepdims=True)


def compare(
    task: Task, predicted: Mapping[str, np.ndarray], labels: np.ndarray, known: np.ndarray, resamples: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line with all metrics for each contestant and seed, and a line for each difference from MMoE.

    All contestants share the same resamples of the test rows.

    Shape:
        predicted: [R, N, W] by contestant. labels, known: [N].
    """
    lines, drawn = [], Drawn()
    chosen = np.flatnonzero(known)
    for name, seeds in predicted.items():
        for seed, one in enumerate(seeds):
            lines.append({"model": name, "run": seed} | task.metric_values(one[chosen], labels[chosen]))
        distinct = seeds[:1] if (seeds == seeds[:1]).all() else seeds
        metrics = [task.resampled_metrics(one[chosen], labels[chosen]) for one in distinct]
        parts = [
            [one(counts.take(chosen, axis=1)) for one in metrics]
            for counts in draw_rows(len(labels), resamples, 0)
        ]
        drawn[name] = {
            metric: np.concatenate([np.mean([one[metric] for one in part], axis=0) for part in parts])
            for metric in task.METRICS
        }
    return lines, differences_of(task, pd.DataFrame(lines), drawn)


def differences_of(task: Task, values: pd.DataFrame, drawn: Drawn) -> list[dict[str, Any]]:
    """The mean of each shown metric, and its difference from MMoE with both intervals."""
    lines = []
    for metric in SHOWN[task.kind]:
        by_model = {str(name): part.set_index("run")[metric] for name, part in values.groupby("model")}
        for name in drawn:
            difference = by_model[name] - by_model[MMOE]
            low, high = np.nanpercentile(drawn[name][metric] - drawn[MMOE][metric], [2.5, 97.5])
            lines.append({
                "metric": metric, "larger_is_better": task.METRICS[metric], "model": name,
                "mean": by_model[name].mean(), "difference": difference.mean(),
                "half_interval_of_seeds": half_interval(difference), "low_of_rows": low, "high_of_rows": high,
            })  # fmt: skip
    return lines


def is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a difference is clear: both intervals, over seeds and over test rows, lie on its side of 0."""
    difference, half = row["difference"], row["half_interval_of_seeds"]
    low, high = row["low_of_rows"], row["high_of_rows"]
    return bool(abs(difference) > half and (low > 0 if difference > 0 else high < 0))


def value_table(differences: pd.DataFrame) -> str:
    """The mean of every shown metric for each contestant, and the differences from MMoE."""
    lines = []
    for (name, task, metric), rows in differences.groupby(["table", "task", "metric"], sort=False):
        cells = [str(name), str(task), str(metric).replace("_", " ")]
        for row in rows.to_dict("records"):
            shown = f"{row['mean']:.4g}"
            if row["model"] not in (MMOE, CONSTANT):
                shown += f" ({row['difference']:+.2g} ± {row['half_interval_of_seeds']:.2g})"
            cells.append(shown + "*" * (row["model"] != MMOE and is_clear(row)))
        lines.append(cells)
    return table(["table", "task", "metric", *differences["model"].unique()], lines)


def count_table(differences: pd.DataFrame) -> str:
    """The number of tasks on which each contestant beats MMoE, or is worse, by the first shown metric."""
    first = differences.groupby(["table", "task"], sort=False)["metric"].transform("first")
    main = differences[(differences["metric"] == first) & (differences["model"] != MMOE)]
    lines = []
    for name, rows in main.groupby("model", sort=False):
        is_better = (rows["difference"] > 0) == rows["larger_is_better"]
        clear = rows.apply(is_clear, axis=1)
        counts = [(clear & is_better).sum(), (clear & ~is_better).sum(), (~clear).sum()]
        lines.append([str(name), *map(str, counts)])
    return table(["contestant", "better than MMoE", "worse than MMoE", "no clear difference"], lines)


def write_report(results: Results, options: Mapping[str, str]) -> None:
    """Write and print the tables, and write all runs, the differences and the chosen settings as CSV."""
    differences = pd.DataFrame(results.differences)
    trials, runs, resamples = (options[name] for name in ("trials", "runs", "resamples"))
    text = [
        "# Public tables",
        f"For each task, each contestant has {trials} random trials from"
        " [its space](../../../scripts/other_tables/spaces.yaml). The validation metric of this task alone"
        " chooses the trial, and the epoch or the boosting round; it is the AUROC, the mean squared error or"
        f" the Poisson deviance. Then the chosen settings are trained with {runs} new seeds, and these models"
        " are tested. `constant` predicts the mean training label for every row.",
        table(
            ["table", "training rows", "validation rows", "test rows"],
            [
                [name, *(f"{counts[split]:,}" for split in ("train", "val", "test"))]
                for name, counts in results.num_rows.items()
            ],
        ),
        "Values are means over the seeds. In parentheses: the difference from MMoE, ± half the 95 %"
        " confidence interval of its mean over the seeds (Student's t, paired by seed). A star marks a"
        f" difference that two intervals support: this one, and the one over {resamples} resamples of the"
        " test rows, which takes the trained models as given. No interval covers other splits or other"
        " searches, and of so many differences some have a star by chance. The rmse, the mae and the"
        " deviance are better if they are smaller, the other metrics if they are larger.",
        value_table(differences),
        "## How often a contestant differs from MMoE",
        "Each task counts once, by the metric that is its first one in the table above. Clear differences are"
        " those with a star.",
        count_table(differences),
        "[Every run](runs.csv), [both intervals of each difference](differences.csv) and"
        " [the chosen settings](settings.csv).",
    ]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(results.runs).to_csv(out / "runs.csv", index=False, float_format="%.6g")
    differences.to_csv(out / "differences.csv", index=False, float_format="%.6g")
    settings_table(results.searches).to_csv(out / "settings.csv", index=False, float_format="%.6g")
    (out / "tables.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text))


def settings_table(searched: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The chosen settings of each search, with their validation value and that of the median trial."""
    lines = []
    for one in searched:
        line = {name: one[name] for name in ("table", "task", "model", "metric", "trial")}
        settings = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in one["settings"].items()
        }
        values = pd.Series(one["values"], dtype=float)
        line |= {"best": one["value"], "median": values.median(), "diverged": int(values.isna().sum())}
        lines.append(line | {"settings": json.dumps(settings)})
    return pd.DataFrame(lines)
