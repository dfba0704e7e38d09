"""Show the results of a run: tables on the terminal, and figures in TensorBoard."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from rich.table import Table

from mmoe.cli.console import open_console
from mmoe.data.schema import Schema
from mmoe.tasks import Task
from mmoe.training.run_results import may_improve

ROW_ORIGINS = {
    "official": "official rows",
    "sample": "bundled sample",
    "synthetic": "generated rows",
    "custom": "your own rows",
}


def metric_text(value: float, half_interval: float = math.nan) -> str:
    """A metric as text, with half its interval if that is known; n/a if the metric cannot be computed.

    Numbers from 10 on have fewer decimals, so that five digits stay.
    """
    large = max(abs(value), 1.0)
    decimals = max(0, 4 - int(math.log10(large))) if math.isfinite(large) else 4
    text = "n/a" if math.isnan(value) else f"{value:,.{decimals}f}"
    return f"{text} ± {half_interval:,.{decimals}f}" if math.isfinite(half_interval) else text


def metric_tables(metrics: Mapping[str, Any], tasks: Sequence[Task]) -> list[Table]:
    """A table with a line for each task and split. Tasks with other metrics get a table of their own."""
    tables = []
    for names in dict.fromkeys(tuple(task.metric_names) for task in tasks):
        table = Table(title_justify="left")
        table.add_column("task", overflow="fold")
        table.add_column("rows")
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for task in (task for task in tasks if tuple(task.metric_names) == names):
            for split in (split for split in ("test", "val") if split in metrics):
                values = metrics[split][task.name]
                half = metrics["half_interval"][split][task.name] if "replicas" in metrics else {}
                texts = [metric_text(values[name], half.get(name, math.nan)) for name in names]
                table.add_row(task.name, split, *texts)
        tables.append(table)
    return tables


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Print each checkpoint's metrics with their confidence intervals."""
    title = f"{found['num_rows']:,} {found['split']} rows, {ROW_ORIGINS[found['row_origin']]}"
    table = Table(title=title, title_justify="left")
    for name in ("checkpoint", "epoch", "task", "metric", "value", "95 % interval"):
        is_whole = name in ("value", "95 % interval")  # these are never wrapped
        justify: Any = "right" if name in ("epoch", "value") else "left"
        table.add_column(
            name, justify=justify, overflow="fold", no_wrap=is_whole, min_width=min(10, len(name))
        )
    for line in found["checkpoints"]:
        for task, values in line["metrics"].items():
            for name, value in values.items():
                bounds = line.get("intervals", {}).get(task, {}).get(name)
                interval = " to ".join(map(metric_text, bounds)) if bounds else "-"
                label = name.replace("_", " ")
                epoch = str(line["epoch"] or "per replica")
                table.add_row(line["checkpoint"], epoch, task, label, metric_text(value), interval)
    open_console().print(table)


def show(folder: Path, metrics: Mapping[str, Any], schema: Schema) -> None:
    """Print each task's metrics, and the facts needed to interpret them."""
    tables = metric_tables(metrics, schema.tasks)
    tables[0].title = f"Best epoch ({ROW_ORIGINS[schema.row_origin]})"
    seen = metrics["num_rows"]
    counts = ", ".join(
        (f"{seen[split]:,} of " if seen.get(split, count) != count else "") + f"{count:,} {split}"
        for split, count in (schema.num_rows or seen).items()
    )
    speed = f"{metrics['samples_per_second']:,.0f}" if metrics["samples_per_second"] else "-"
    if "replicas" in metrics:
        first, *_, last = sorted(run["epoch"] for run in metrics["runs"])
        chosen = f"mean ± half a 95 % interval of {metrics['replicas']} replicas, epochs {first} to {last}"
    else:
        chosen = f"epoch {metrics['epoch']}"
    chosen += f" of {metrics['epochs']}"
    advice = "; a longer training may be better: trainer.max_epochs=..." if may_improve(metrics) else ""
    why = f"by {metrics['monitor']}" if metrics["monitor"] else "the last, because no validation chose one"
    shared = f" in {metrics['processes']} processes" if metrics["processes"] > 1 else ""
    threads = f"{metrics['threads']} thread{'s' if metrics['threads'] > 1 else ''}"
    seconds = f"{metrics['seconds']:.0f} s"
    rate = "-" if metrics["learning_rate"] is None else f"{metrics['learning_rate']:g}"
    console = open_console()
    for table in tables:
        console.print(table)
    console.print(
        f"rows: {counts}\n"
        f"{chosen}, {why}{advice}\n"
        f"{metrics['steps']:,} steps of {metrics['global_batch']:,} rows{shared}, learning rate {rate}\n"
        f"{metrics['parameters']:,} parameters, {speed} samples/s with {threads},"
        f" {seconds} until the end of the test\n"
        f"run folder: {os.path.relpath(folder)}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def log_figures(loggers: Sequence[Logger], figures: Mapping[str, Any]) -> None:
    """Add the figures to TensorBoard, if the run logs to it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(name, figure, close=False)
            logger.experiment.flush()
