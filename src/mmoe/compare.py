"""Compare the runs of a sweep: `python -m mmoe.compare <sweep folder>`."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmoe.atomic import write
from mmoe.cli.console import open_console
from mmoe.cli.exits import errors_on_one_line

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


def main() -> None:
    """Print a table of all runs below a folder, and write it there with a figure and a page."""
    parser = argparse.ArgumentParser("python -m mmoe.compare", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of a sweep, or any with run folders below it")
    parser.add_argument("--key", help="config key for the x axis; default: the first that differs")
    parser.add_argument(
        "--lightgbm", action="store_true", help="also train LightGBM on the rows of the runs, and list it"
    )
    arguments = parser.parse_args()
    with errors_on_one_line():
        compare(arguments.folder, arguments.key, arguments.lightgbm)


def compare(folder: Path, key: str | None = None, lightgbm: bool = False) -> None:
    """Print `sweep_table`, and write compare.csv, compare.png, compare.md and compare.html.

    With `lightgbm`, LightGBM is trained first, with the seeds of the runs.
    """
    from mmoe.analysis.page import FIGURE_DPI
    from mmoe.analysis.sweep_card import write_sweep_card
    from mmoe.analysis.sweep_lightgbm import check_installed, train_baseline
    from mmoe.analysis.sweep_results import plot_sweep, sweep_table
    from mmoe.analysis.sweep_runs import sweep_runs

    if lightgbm:
        check_installed()
        runs = sweep_runs(folder)
        train_baseline(folder, [folder / name for name in runs.attrs["runs"]], runs["seed"].unique().tolist())
    table = sweep_table(folder)
    figure = plot_sweep(folder, key)
    write(folder / "compare.csv", partial(table.to_csv, index=False))
    write(folder / "compare.png", partial(figure.savefig, dpi=FIGURE_DPI))
    write_sweep_card(folder, table)
    print_table(table)
    console = open_console()
    console.print(
        f"written: {folder / 'compare.csv'}, compare.png, compare.md and compare.html",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    if unfinished := table.attrs["unfinished"]:
        console.print(f"not finished, so left out: {', '.join(unfinished)}", highlight=False, markup=False)


def print_table(table: "pd.DataFrame") -> None:
    """Print the result of `sweep_table`, with each mean and its half interval in one cell.

    If the console is too narrow for all tasks side by side, each task has a table of its own.
    """
    from mmoe.analysis.sweep_card import shown_columns
    from mmoe.training.report import ROW_ORIGINS
    from mmoe.training.run_results import split_key

    order: str = table.attrs["order"]
    title = f"{order[0].upper()}{order[1:]}; {ROW_ORIGINS[table.attrs['row_origin']]}"
    names, console = shown_columns(table), open_console()
    whole = _printed(table, names, title)
    if console.measure(whole, options=console.options.update(max_width=10_000)).maximum <= console.width:
        console.print(whole)
        return
    console.print(title, highlight=False, markup=False)
    for task in table.attrs["tasks"]:
        own = [name for name in names if "/" not in name or split_key(name)[1] == task]
        console.print(_printed(table, own, task, has_task_in_header=False))


def _printed(table: "pd.DataFrame", names: list[str], title: str, has_task_in_header: bool = True) -> "Table":
    """The columns `names` as a table for the console. If it is too narrow, options are wrapped."""
    from rich.table import Table
    from rich.text import Text

    from mmoe.analysis.sweep_card import cell
    from mmoe.training.run_results import split_key

    printed = Table(title=Text(title), title_justify="left")
    for name in names:
        stage, task, metric = split_key(name)  # for an option, the task and the metric are empty
        parts = (stage, task if has_task_in_header else "", metric.replace("_", " "))
        header = " ".join(filter(None, parts))
        printed.add_column(Text(header), justify="right", overflow="fold", no_wrap="/" in name)
    for line in table.to_dict("records"):
        printed.add_row(*(Text(cell(line, name)) for name in names))
    return printed


if __name__ == "__main__":
    main()
