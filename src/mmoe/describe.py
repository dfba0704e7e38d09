"""Draft the configuration of a table: `python -m mmoe.describe FILE tasks=[click] out=mine.yaml`."""

import shlex
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mmoe.atomic import write_text
from mmoe.checks.arguments import as_names
from mmoe.cli.command import command
from mmoe.cli.console import open_console
from mmoe.cli.overrides import quote_override, quote_value
from mmoe.errors import UserError

if TYPE_CHECKING:
    from mmoe.data.column_guess import Guess
    from mmoe.data.column_values import ColumnValues
    from mmoe.data.draft import Description

NARROW = 100  # characters of a console without room for remarks in the table
MAX_ROWS = 2**21  # more rows tell nothing new about the kinds of columns


def main() -> None:
    """Run the command. Files may stand before the other arguments, without `input=`."""
    sys.argv[1:] = name_input(sys.argv[1:])
    run()


def name_input(arguments: Sequence[str]) -> list[str]:
    """Turn the files at the start of a command line into an override for Hydra."""
    files = list(takewhile(lambda argument: "=" not in argument and not argument.startswith("-"), arguments))
    quoted = [quote_value(file) for file in files]
    override = quoted[0] if len(quoted) == 1 else f"[{','.join(quoted)}]"
    return [*([f"input={override}"] if files else []), *arguments[len(files) :]]


@command("describe")
def run(config: DictConfig) -> None:
    """Print the columns of a table, and write the YAML if `out` is given."""
    from mmoe.data.draft import choose_fractions, draft

    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    out = None if settings["out"] is None else Path(str(settings["out"]))
    labels = as_names(settings["tasks"])
    if out:
        if out.suffix not in (".yaml", ".yml"):
            raise UserError(f"out={out}: must end with .yaml")
        if not labels:
            raise UserError("tasks=[]: must name the columns that hold labels if out is given")
        if out.exists() and not settings["overwrite"]:
            raise UserError(f"out={out}: must not exist yet; overwrite=true replaces it")
    table = describe(config.input if isinstance(config.input, str) else settings["input"], labels, settings)
    main_task = _find_main_task(table, settings["main_task"])
    shares = choose_fractions(table, main_task)
    show(table)
    if out:
        if not table.inputs:
            raise UserError("columns: no column is left as an input; the table above says why")
        command_line = train_command(out)
        write_text(out, draft(table, main_task, shares, command_line))
        print(f"written: {out}" + (f"; to train: {command_line}" if command_line else ""))


def train_command(out: Path) -> str | None:
    """The command that trains with the YAML file `out`; None if it is not in a folder named data."""
    if out.parent.name != "data":
        return None
    folder, override = str(out.parent.parent), quote_override("data", out.stem)
    return shlex.join(["python", "-m", "mmoe.train", "--config-dir", folder, override])


def describe(source: str | list[str], labels: Sequence[str], settings: dict[str, Any]) -> "Description":
    """Guess the kinds of columns and tasks from the first `MAX_ROWS` rows. `settings` has `csv` and `test`.

    Raises:
        UserError: a file cannot be read, a label is not among its columns, or cannot be learned.
    """
    from mmoe.data.column_guess import guess
    from mmoe.data.column_values import values_of
    from mmoe.data.csv_guess import guess_options
    from mmoe.data.csv_options import CsvOptions
    from mmoe.data.data_files import CSV, file_kind, find_files
    from mmoe.data.draft import Description
    from mmoe.data.suspects import find_suspects
    from mmoe.data.table_files import check_columns, read_table
    from mmoe.data.task_guess import guess_tasks

    files = find_files(source)
    csv = guess_options(files[0], settings["csv"]) if file_kind(files[0]) == CSV else None
    options = csv or CsvOptions()
    need_header = [name for name in labels if not name.startswith("column_")]
    if need_header and not (options.header or options.names):
        what = f"has no header, so it has no column {need_header[0]!r}; csv.names=[...] names its columns"
        raise UserError(f"{files[0]}: {what}")
    check_columns(files, options, labels)
    if len(set(labels)) < len(labels):
        raise UserError(f"tasks={','.join(labels)}: must name each column once")
    table = read_table(files, options, max_rows=MAX_ROWS + 1, keep_bytes=True)
    is_whole = len(table) <= MAX_ROWS
    table = table.slice(0, MAX_ROWS)
    columns = {name: values_of(name, table[name]) for name in table.column_names}
    guesses = [guess(values, csv is not None) for name, values in columns.items() if name not in labels]
    tasks = guess_tasks(labels, columns, csv is not None)
    suspects = find_suspects(tasks, [one.values for one in guesses if not one.reason])
    found = Description(source, settings["test"], csv, len(table), is_whole, guesses, tasks, suspects)
    if settings["test"] is not None:
        needed = [*(one.values.name for one in found.inputs), *labels]
        check_columns(find_files(settings["test"]), options, needed)
    return found


def show(table: "Description") -> None:
    """Print a table with a line for each column. Remarks stand below it if the console is narrow."""
    from rich.table import Table
    from rich.text import Text

    console = open_console()
    is_narrow = console.width < NARROW
    shown = Table(title=table.rows, title_justify="left")
    names = ["column", "kind", "levels or range", "missing", "most frequent"]
    for name in names if is_narrow else [*names, "remark"]:
        shown.add_column(name, justify="right" if name == "missing" else "left", overflow="fold")
    below = []

    def add(values: "ColumnValues", kind: str, levels: str, remark: str) -> None:
        # A field of several levels is no level itself.
        most_frequent = "-" if kind.startswith("multi") else _most_frequent(values)
        texts = [values.name, kind, levels, _missing(values), most_frequent]
        if not is_narrow:
            texts.append(remark)
        elif remark:
            below.append(f"{values.name}: {remark}")
        shown.add_row(*map(Text, texts))  # a name may hold brackets, which rich would read as markup

    for task in table.tasks:
        count = len(task.values.distinct)
        add(task.values, f"task, {task.kind}", f"{count:,} values", "; ".join(task.remarks))
    for one in table.guesses:
        suspect = table.suspects.get(one.values.name)
        remarks = [f"suspect: {suspect}"] if suspect else [one.reason] if one.reason else one.remarks
        add(one.values, _kind(one, suspect), one.summary, "; ".join(remarks))
    console.print(shown)
    for line in below:
        console.print(line, markup=False, highlight=False)


def _kind(one: "Guess", suspect: str | None) -> str:
    if one.reason or suspect:
        return "left out"
    separator = one.options.get("separator")
    return f"{one.kind}, separator {separator}" if separator else one.kind


def _missing(values: "ColumnValues") -> str:
    count = values.num_missing
    return f"{count:,} ({count / values.num_rows:.1%})" if count else "-"


def _most_frequent(values: "ColumnValues") -> str:
    if not values.num_known or values.counts.max() == 1:
        return "-"
    code = int(values.counts.argmax())
    text = " ".join(values.texts[code].split())
    return f"{text[:24] + '...' * (len(text) > 24)} ({values.counts[code] / values.num_rows:.1%})"


def _find_main_task(table: "Description", wanted: str | None) -> str:
    names = {task.values.name: task.name for task in table.tasks}
    if wanted is None:
        return next(iter(names.values()), "")
    if str(wanted) not in names:
        rule = f"must be one of {', '.join(names)}" if names else "needs tasks, and tasks=[] names none"
        raise UserError(f"main_task={wanted}: {rule}")
    return names[str(wanted)]


if __name__ == "__main__":
    main()
