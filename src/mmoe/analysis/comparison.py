"""The table and the figure of a sweep, printed and written."""

import sys
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from mmoe.analysis.sweep import compare
from mmoe.analysis.sweep_figures import plot_compare
from mmoe.atomic import write
from mmoe.training.report import ROWS

WIDE = 200  # columns, where nobody's screen ends


def write_comparison(folder: Path, key: str | None = None) -> None:
    """Print `compare` of a folder; write it there as compare.csv, and its figure as compare.png.

    Raises:
        UserError: as `compare`, or `key` is nothing that differs.
    """
    table = compare(folder)
    figure = plot_compare(folder, key)
    write(folder / "compare.csv", partial(table.to_csv, index=False))
    write(folder / "compare.png", partial(figure.savefig, dpi=150))
    _print(table)
    Console().print(f"written: {folder / 'compare.csv'} and compare.png", soft_wrap=True, highlight=False)
    if unfinished := table.attrs["unfinished"]:
        Console().print(f"not finished, so left out: {', '.join(unfinished)}", highlight=False)


def _print(table: pd.DataFrame) -> None:
    what = ROWS[table.attrs["rows"]]
    order = "Best on the validation rows first" if table.attrs["is_sorted"] else "In the order of the runs"
    printed = Table(title=f"{order}; {what}", title_justify="left")
    values = [name for name in table.columns if not str(name).endswith("±")]
    for name in values:
        printed.add_column(str(name).replace("/", " "), justify="right", no_wrap="/" not in str(name))
    for line in table.to_dict("records"):
        printed.add_row(*(_cell(line, str(name)) for name in values))
    Console(width=None if sys.stdout.isatty() else WIDE).print(printed)


def _cell(line: dict[Hashable, Any], name: str) -> str:
    value, half = line[name], line.get(f"{name} ±")
    if "/" in name:
        return f"{value:.4f}" + ("" if pd.isna(half) else f" ± {half:.4f}")
    return f"{value:,}" if name == "parameters" else str(value)
