"""The reference of the configuration, generated from conf/: `python scripts/config_reference.py` prints it.

The comments in the YAML files are its text. A comment beside a key, or on the lines above it, explains the
key; the comments at the top of a file explain the file.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

CONF = Path(__file__).parents[1] / "conf"
COMMANDS = ("train", "evaluate", "predict", "export", "extract", "tune", "describe")
# What each group decides, in the order of the page.
GROUPS = {
    "experiment": "Named sets of overrides of the other settings. `census` is the default.",
    "data": "Where the rows come from. Tables of your own have [a configuration of their own](tables.md).",
    "features": "The columns of the census files that the network reads.",
    "inputs": "How columns become the inputs of the network.",
    "model": "The [method](methods.md).",
    "balance": "How the [tasks are balanced](balancing.md).",
    "learner": "The optimizer and the learning rates.",
    "trainer": "[Hardware](scaling.md) and the length of a training.",
    "logger": "Where metrics are logged.",
    "space": "The ranges that [`mmoe.tune`](search.md) searches.",
}
HEAD = """# Configuration reference

This page is generated from the files in `conf/`. A training is configured by
[`train.yaml`](#the-files-of-the-commands) and one file of each group. `group=name` on the command line
chooses a file, and `key=value` changes a setting, such as `model=ple model.num_levels=2`. `--cfg job` prints
the result.

"""


class Setting(NamedTuple):
    """A key of a file, with its default and its comment."""

    key: str
    default: str
    comment: str


def reference(conf: Path = CONF) -> str:
    """The page as Markdown."""
    text = [HEAD, "## The files of the commands\n\n"]
    text += [_section(conf / f"{name}.yaml", f"`mmoe.{name}`") for name in COMMANDS]
    for group, meaning in GROUPS.items():
        text.append(f"## {group}\n\n{meaning}\n\n")
        text += [_section(path, f"`{group}={path.stem}`") for path in sorted((conf / group).glob("*.yaml"))]
    return "".join(text)


def _section(path: Path, title: str) -> str:
    head, settings = read(path.read_text("utf-8"))
    text = f"### {title}\n\n" + (f"{_prose(head)}\n\n" if head else "")
    if settings:
        text += "| setting | default | meaning |\n| --- | --- | --- |\n"
        text += "".join(f"| {_code(s.key)} | {_code(s.default)} | {_cell(s.comment)} |\n" for s in settings)
        text += "\n"
    return text


def read(text: str) -> tuple[str, list[Setting]]:
    """The comment at the top of a YAML file, and its settings in their order."""
    lines = text.splitlines()
    count = 0
    while count < len(lines) and lines[count].startswith("#"):
        count += 1
    head = [line.lstrip("# ").rstrip() for line in lines[:count] if not line.startswith("# @package")]
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return " ".join(head), []
    return " ".join(head), list(_settings(root, "", text, lines, first=count))


def _settings(
    node: yaml.MappingNode, prefix: str, text: str, lines: list[str], first: int
) -> Iterator[Setting]:
    """The settings in a mapping, without those of Hydra. Comments above line `first` belong to the file."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name == "hydra":
            continue
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        # The comment of a block stands on the line of its key.
        is_text = isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")
        end = key.end_mark if is_block or is_text else value.end_mark
        comment = [*_above(lines, key.start_mark, first), *_beside(lines, end, key.start_mark.column)]
        if is_block and isinstance(value, yaml.MappingNode):
            if comment:
                yield Setting(name, "", " ".join(comment))
            yield from _settings(value, f"{name}.", text, lines, first)
        else:
            default = text[value.start_mark.index : value.end_mark.index]
            if is_block:
                items = (text[one.start_mark.index : one.end_mark.index] for one in value.value)
                default = ", ".join(re.sub(r"\s+#.*", "", item).strip() for item in items)
                rows = lines[value.start_mark.line : value.end_mark.line]
                comment += [found[1] for row in rows if (found := re.search(r"\s#\s*(.*)$", row))]
            yield Setting(name, " ".join(default.split()), " ".join(comment))


def _above(lines: list[str], start: yaml.Mark, first: int) -> list[str]:
    """The comment on the lines above a key, which begins in the key's column."""
    found: list[str] = []
    for row in range(start.line - 1, first - 1, -1):
        if not lines[row].startswith(" " * start.column + "#"):
            break
        found.insert(0, lines[row].strip().lstrip("# "))
    return found


def _beside(lines: list[str], end: yaml.Mark, column: int) -> list[str]:
    """The comment beside a value, and on the next lines if it is further to the right than the key."""
    match = re.search(r"#\s*(.*)$", lines[end.line][end.column :])
    if not match:
        return []
    found = [match[1].strip()]
    for line in lines[end.line + 1 :]:
        if not line.startswith(" " * (column + 1)) or not line.lstrip().startswith("#"):
            break
        found.append(line.strip().lstrip("# "))
    return found


def _prose(text: str) -> str:
    """A comment as Markdown. Its code spans stay, and all other characters with a meaning are escaped."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_<>\[\]{}])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    sys.stdout.write(reference())
