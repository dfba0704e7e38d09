"""What the numbers of a run do not show: the limits section of its model card.

N rows, T tasks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmoe.analysis.card_data import HELD_OUT_NAMES
from mmoe.analysis.page import code
from mmoe.intervals import ROUGH_RESAMPLES
from mmoe.run import Run
from mmoe.tasks import Task
from mmoe.training.gate_statistics import COLLAPSED
from mmoe.training.run_results import may_improve

FEW_LABELS = 100  # with fewer labels of a class among the test rows, a metric is rough
NAMED = 10  # tasks that a sentence names
ORIGINS = {
    "sample": "The rows are the bundled sample, which is synthetic. Metrics on the official rows differ.",
    "synthetic": "The rows are generated. Metrics say nothing about measured data.",
}


def limits(run: Run, test_labels: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A sentence or two for each limit.

    `test_labels` has the known labels by task. It is empty if each replica has its own test rows.
    """
    metrics, schema, config = run.metrics, run.schema, run.config
    if schema.row_origin in ORIGINS:
        yield ORIGINS[schema.row_origin]
    yield from _row_limits(metrics, schema.num_rows)
    yield from _split_limits(config.data.get("test"))
    yield from _seed_limits(metrics, config)
    yield from _label_limits(schema.tasks, test_labels, metrics["num_rows"].get("test", 0))
    if shifted := [task for task in schema.tasks if task.shifts_probabilities]:
        why = "with class weights or a focal loss, so predicted probabilities differ from observed rates"
        yield f"These tasks were trained {why}: {_names(shifted)}."
    if weighted := [task for task in schema.tasks if task.weight]:
        yield f"The loss of these tasks weighs rows; the metrics do not: {_names(weighted)}."
    yield from _gate_limits(run)
    yield "Each metric is one number for all test rows. It may be much worse for a subgroup of them."


def _row_limits(metrics: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[str]:
    for split, name in HELD_OUT_NAMES.items():
        used, count = metrics["num_rows"].get(split, 0), counts.get(split)
        if not used:
            yield f"No {name} row was used, so there are no {name} metrics."
        elif count is not None and used < count:
            yield f"The metrics cover the first {used:,} of {count:,} {name} rows."


def _split_limits(rule: Any) -> Iterator[str]:
    """`rule` is how the test rows of a table were chosen; None for other data."""
    if not isinstance(rule, Mapping):  # a list of files
        return
    if rule.get("fraction") is not None:
        origin = "are a random part of the same files"
        if by := rule.get("by"):
            origin = f"have other values of {code(by)} than the training rows, but come from the same files"
        yield f"The test rows {origin}. Later rows, or rows from elsewhere, may be predicted less well."


def _seed_limits(metrics: Mapping[str, Any], config: Any) -> Iterator[str]:
    if "replicas" in metrics:
        covered = "the choice of the seed, but not the choice of the test rows"
        if metrics["row_origin"] == "synthetic":
            covered = "the choice of the seed and of the rows, because each replica has its own rows"
        yield (
            f"± is half of a 95 % interval for the mean over {metrics['replicas']} replicas (Student's t)."
            f" It covers {covered}."
        )
    else:
        if "test" in metrics:
            yield (
                f"± is half of an approximate 95 % interval from {ROUGH_RESAMPLES} resamples of the test"
                " rows. It covers the choice of the test rows, but not the seed: this is one training, with"
                f" seed {config.seed}."
                " `mmoe.evaluate` computes it from more resamples, and `replicas=8` trains with eight seeds."
            )
        if may_improve(metrics):
            yield "The best epoch is the last one. A longer training may be better: `trainer.max_epochs=...`."
    if metrics["monitor"] and "val" in metrics:
        yield "Validation rows chose the best epoch, so their metrics are a little too good."
    if not metrics["monitor"]:
        yield "No validation chose an epoch. The weights are those of the last step."


def _label_limits(
    tasks: tuple[Task, ...], test_labels: Mapping[str, np.ndarray], num_rows: int
) -> Iterator[str]:
    few, partial = [], []
    for task in tasks:
        if task.name not in test_labels:
            continue
        labels = test_labels[task.name]
        if task.count_rarest(labels) < FEW_LABELS:
            few.append(task)
        if len(labels) < num_rows:
            partial.append(task)
    if few:
        what = f"fewer than {FEW_LABELS} test labels, or fewer than {FEW_LABELS} of their rarest class"
        yield f"These tasks have {what}: {_names(few)}."
    if partial:
        yield f"The label is unknown in some test rows, which their metrics leave out: {_names(partial)}."


def _gate_limits(run: Run) -> Iterator[str]:
    history, epoch = run.history, run.metrics["epoch"]
    if run.config.replicas > 1:
        yield (
            "This page shows no gates and few figures, because the run has replicas. `python -m mmoe.extract`"
            " makes a run of one of them."
        )
        return
    if f"val/{run.schema.tasks[0].name}/gate_1" not in history:
        return
    best = history[history["epoch"] == epoch]
    collapsed = []
    for task in run.schema.tasks:
        names = [name for name in history if str(name).startswith(f"val/{task.name}/gate_")]
        weights = best[[name for name in names if str(name).rpartition("_")[2].isdigit()]]
        if len(weights) and float(weights.iloc[-1].max()) > COLLAPSED:
            collapsed.append(task)
    if collapsed:
        yield f"The gates of these tasks have collapsed to one expert: {_names(collapsed)}."
    yield (
        "Gate weights show how a task mixes the experts. They do not show how much it needs an expert, which"
        " `mmoe.analysis.expert_ablation` measures."
    )


def _names(tasks: list[Task]) -> str:
    names = ", ".join(code(task.name) for task in tasks[:NAMED])
    return names + (f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else "")
