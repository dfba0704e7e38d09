"""Draft the YAML of a table: every argument of its data module, with comments."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from mmoe.data.column_guess import Guess
from mmoe.data.column_names import suggests_groups, suggests_weights
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import name_files
from mmoe.data.fraction_guess import Fractions, guess_fractions
from mmoe.data.table_data import default_settings
from mmoe.data.task_guess import TaskGuess

COMMENT_COLUMN = 42  # where comments begin, as in conf/
# Words that YAML does not read as text.
YAML_WORDS = ("yes", "no", "on", "off", "true", "false", "y", "n", "null", "none", "nan", "inf")


class Description(NamedTuple):
    """All that is known about a table.

    Attributes:
        source, test: the files as the user names them; `test` is None if there are none.
        csv: how text is written; None if the files are not text.
        num_rows: the rows that were read.
        is_whole: whether the files have no more rows.
        guesses: all columns that are not labels.
        suspects: why columns give a label away, by name.
    """

    source: str | Sequence[str]
    test: str | Sequence[str] | None
    csv: CsvOptions | None
    num_rows: int
    is_whole: bool
    guesses: Sequence[Guess]
    tasks: Sequence[TaskGuess]
    suspects: Mapping[str, str]

    @property
    def rows(self) -> str:
        """The number of rows, for people."""
        counted = f"{self.num_rows:,} row" + "s" * (self.num_rows != 1)
        return counted if self.is_whole else f"the first {counted}"

    @property
    def inputs(self) -> list[Guess]:
        """The columns that are inputs of the network."""
        return [one for one in self.guesses if not one.reason and one.values.name not in self.suspects]


def choose_fractions(table: Description, main_task: str) -> Fractions:
    """The shares of validation and test rows. A remark is added to each task with one class in a split."""
    shares = guess_fractions(table.tasks, main_task, table.num_rows, table.test is not None)
    for task in table.tasks:
        if task.name in shares.one_class:
            remark = "too few rows of one class: with these fractions, a split has none"
            if task.name == main_task:
                remark += f"; to train, add monitor=val/{task.name}/log_loss"
            task.remarks.append(remark)
    return shares


def draft(table: Description, main_task: str, shares: Fractions, command: str | None) -> str:
    """The text of the YAML file. Its second line is the `command` that trains with it, if there is one."""
    count = len(table.guesses) + len(table.tasks)
    files = [table.source] if isinstance(table.source, str) else table.source
    lines = [
        f"# {name_files(files)}: {table.rows}, {count} columns. Drafted by mmoe.describe;"
        " check the kinds of the columns and of the tasks.",
        *([f"# {command}"] if command else []),
        "_target_: mmoe.data.table_data.TableData",
        f"train: {to_yaml(table.source)}",
        _line(
            f"validation: {{fraction: {shares.validation}}}", shares.reason or _validation_hint(table.inputs)
        ),
        f"test: {to_yaml(table.test)}"
        if table.test
        else _line(f"test: {{fraction: {shares.test}}}", shares.reason or "or a file"),
    ]
    if table.csv:
        lines.append(f"csv: {to_yaml(asdict(table.csv))}")
    lines.append("columns:")
    for one in table.guesses:
        lines.append(_column(one, table.suspects.get(one.values.name)))
    lines.append("tasks:")
    for task in table.tasks:
        lines.append(_line(f"  {to_yaml(task.name)}: {to_yaml(task.to_plain())}", task.remarks[0]))
        lines += [f"    # {remark}" for remark in task.remarks[1:]]
    lines += [
        _line(f"main_task: {to_yaml(main_task)}", "its validation metric chooses the epoch"),
        _default("weight", _weight_hint(table.inputs)),
        _default("group_by", _group_hint(table.guesses)),
        _default("num_bins", "at most, for each numeric column"),
        _default("split_seed", "for random validation and test rows"),
        _default("cache_dir", "null: the user's cache directory"),
        _default("stream", "true: train from disk; auto: if the rows do not fit into memory"),
        _default("engine", "what encodes rows in shards: local or dask"),
        _default("dask_address", "of a Dask scheduler, tcp://host:8786; null: start one here"),
        _line(f"batch_size: {batch_size(table.num_rows)}", "rows of a training step"),
        _default("eval_batch_size", ""),
        _default("resident", "keep the rows on the device"),
        _default("seed", "for shuffling"),
    ]
    return "".join(f"{line}\n" for line in lines)


def batch_size(num_rows: int) -> int:
    """A power of 2 from 16 to the default. Between these limits, the rows make at least 64 batches."""
    return int(min(default_settings()["batch_size"], max(16, 2 ** int(math.log2(max(1, num_rows / 64))))))


def to_yaml(value: Any) -> str:
    """A plain value in YAML's flow style, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{to_yaml(key)}: {to_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(to_yaml, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    is_plain = (
        re.fullmatch(r"([.]{0,2}/|~/|[A-Za-z_])([\w ./*-]*\w)?", value, re.ASCII)
        and value.lower() not in YAML_WORDS
    )
    # OmegaConf reads ${...} as a reference, unless a backslash stands before it.
    escaped = value.replace("${", "\\${")
    return value if is_plain else json.dumps(escaped, ensure_ascii=not value.isprintable())


def _column(one: Guess, suspect: str | None) -> str:
    entry = f"{to_yaml(one.values.name)}: {to_yaml(one.to_plain())}"
    missing = [f"missing in {one.values.num_missing:,} rows"] if one.values.num_missing else []
    if suspect or one.reason:
        why = f"gives a label away: {suspect}" if suspect else one.reason
        return _line(f"  # {entry}", f"left out: {why}")
    return _line(f"  {entry}", "; ".join([one.summary, *missing, *one.remarks]))


def _default(name: str, comment: str) -> str:
    """The line of a setting that has its default."""
    value = default_settings()[name]
    is_reference = isinstance(value, str) and value.startswith("${")
    return _line(f"{name}: {value if is_reference else to_yaml(value)}", comment)


def _line(text: str, comment: str) -> str:
    comment = " ".join(comment.split())
    return f"{text:<{COMMENT_COLUMN - 1}} # {comment}" if comment else text


def _validation_hint(inputs: Sequence[Guess]) -> str:
    choices = ["or a file"]
    times = [one.values.name for one in inputs if one.kind == "datetime" and not one.values.num_missing]
    groups = [one.values.name for one in inputs if suggests_groups(one.values.name)]
    if times:
        choices.append(to_yaml({"last": 0.1, "by": times[0]}))
    if groups:
        choices.append(to_yaml({"fraction": 0.1, "by": groups[0]}))
    return "; ".join(choices)


def _weight_hint(inputs: Sequence[Guess]) -> str:
    names = [one.values.name for one in inputs if one.kind == "numeric"]
    weights = list(filter(suggests_weights, names))
    return "a column with the weight of each row in the loss" + (f", such as {weights[0]}" if weights else "")


def _group_hint(guesses: Sequence[Guess]) -> str:
    names = [one.values.name for one in guesses if suggests_groups(one.values.name)]
    hint = "a column of groups; adds the mean AUROC within groups"
    return hint + (f", such as {names[0]}" if names else "")
