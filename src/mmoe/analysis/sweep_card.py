"""The card of a sweep: one page that compares its runs, beside compare.csv and compare.png."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mmoe.analysis.page import code, number_of, table, write_page
from mmoe.training.report import ROW_ORIGINS, metric_text
from mmoe.training.run_folder import CARDS
from mmoe.training.run_results import split_key

MAX_RUNS = 500  # that the card lists
MAX_COLUMNS = 7  # that fit side by side on the page
FEW_SEEDS = 3
COUNTS = ("seeds", "parameters")


def write_sweep_card(folder: Path, compared: pd.DataFrame) -> None:
    """Write compare.md and compare.html; `compared` is the result of `sweep_table`."""
    name = "/".join(folder.absolute().parts[-2:])
    facts = compared.attrs
    text = f"# Comparison: {code(name)}\n\n"
    text += f"{number_of(len(facts['runs']), 'run')} ({ROW_ORIGINS[facts['row_origin']]}), {facts['order']}."
    if facts["monitor"]:
        text += f" The runs chose their epochs by {code(facts['monitor'])}."
    text += " Metrics are means over seeds.\n\n"
    text += _tables(compared)
    if (folder / "compare.png").is_file():
        text += "\n![metrics by option](compare.png)\n"
        has_means = (compared.loc[compared["parameters"].notna(), "seeds"] > 1).any()  # not LightGBM's
        what = "circle is one seed, and the filled markers are means" if has_means else "marker is one run"
        text += f"\nEach {what}."
        if facts["has_lightgbm"] and facts["varied"][0] != "model":
            text += " The dashed line is LightGBM, with its 95 % interval if it has several seeds."
        text += "\n"
    text += "\n## Limits\n\n" + "".join(f"- {one}\n" for one in _limits(compared))
    text += "\n## Runs\n\n" + "".join(_runs(folder, facts["runs"], facts["unfinished"]))
    write_page(folder, "compare", f"Comparison: {name}", text)


def _tables(compared: pd.DataFrame) -> str:
    """The table of all metrics. If it has too many columns for a page, each task has a table of its own."""
    names = shown_columns(compared)
    if len(names) <= MAX_COLUMNS:
        return _table(compared, names)
    text = ""
    for task in compared.attrs["tasks"]:
        own = [name for name in names if "/" not in name or split_key(name)[1] == task]
        text += f"## {code(task)}\n\n{_table(compared, own)}\n"
    return text


def _table(compared: pd.DataFrame, names: list[str]) -> str:
    lines = [[cell(line, name, code) for name in names] for line in compared.to_dict("records")]
    header = [" ".join(map(code, filter(None, split_key(name)))) for name in names]  # may wrap at the blanks
    return table(header, lines, ["/" in name or name in COUNTS for name in names])


def shown_columns(compared: pd.DataFrame) -> list[str]:
    """The columns without the half intervals, which stand in the cells of their metrics."""
    return [str(name) for name in compared.columns if not str(name).endswith("±")]


def cell(line: Mapping[Any, Any], name: str, option_text: Callable[[Any], str] = str) -> str:
    """A metric with half its interval, a count, or the value of an option as `option_text` writes it."""
    if "/" in name:
        return metric_text(line[name], line.get(f"{name} ±", math.nan))
    if name in COUNTS:
        return "-" if pd.isna(line[name]) else f"{line[name]:,}"
    return option_text(line[name])


def _limits(compared: pd.DataFrame) -> Iterator[str]:
    seeds = int(compared["seeds"].min())
    which = "All lines have" if seeds == int(compared["seeds"].max()) else "Some lines have"
    if seeds < 2:
        yield f"{which} one seed, and no interval. Their order may change with the seed."
    if compared["seeds"].max() > 1:
        yield "± is half of a 95 % interval for the mean over the seeds (Student's t)."
        if 1 < seeds < FEW_SEEDS:
            yield f"{which} {seeds} seeds, so that their intervals are wide."
        if compared.attrs["row_origin"] == "synthetic":
            yield "The intervals also cover the choice of the rows, unless `data.seed` is fixed."
        else:
            yield "The intervals do not cover the choice of the test rows, which all runs share."
    if len(compared) > 1:
        yield (
            "The best of several validation metrics is a little too good, because it was chosen. Choose a"
            " line by its validation metric, and report the test metric of that line alone."
        )
    if compared.attrs["has_lightgbm"]:
        yield (
            "LightGBM has one model for each task. Its settings are usual ones, and were not searched. The"
            " number of trees is chosen for each task, but a network's epoch for the main task alone. So"
            " compare LightGBM by its test metrics."
        )
    if count := len(compared.attrs["unfinished"]):
        yield f"{number_of(count, 'unfinished run')} {'is' if count == 1 else 'are'} left out."


def _runs(folder: Path, finished: Mapping[str, Mapping[str, Any]], unfinished: list[str]) -> Iterator[str]:
    for run, settings in list(finished.items())[:MAX_RUNS]:
        links = [
            f"[{name.rpartition('.')[2]}]({quote(f'{run}/{name}')})"
            for name in CARDS
            if (folder / run / name).is_file()
        ]
        text = ", ".join(code(f"{key}={value}") for key, value in settings.items())
        yield f"- {code(run)}: {text}" + (f"; model card as {' and '.join(links)}" if links else "") + "\n"
    if len(finished) > MAX_RUNS:
        yield f"- and {len(finished) - MAX_RUNS:,} more\n"
    for run in unfinished[:MAX_RUNS]:
        yield f"- {code(run)}: not finished\n"
