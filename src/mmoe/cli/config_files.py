"""Check the config groups and the configuration files that a command line names."""

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from yaml import YAMLError

from mmoe import CONF_DIR
from mmoe.errors import UserError, first_line


def check_groups(arguments: Sequence[str]) -> None:
    """Raise UserError for a group with dashes, as `--experiment=census`, or without a name, as `model=null`.

    Hydra would end with a traceback. It takes `--experiment` for an option of its own.
    """
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
    for argument in arguments:
        group = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and group in groups:
            raise UserError(f"{argument}: groups have no dashes; write {group}=...")
        group = argument.partition("=")[0].lstrip("+").partition("@")[0]
        if group in groups and not _has_name(argument):
            raise UserError(
                f"{argument}: must name a configuration of {group}; a number or null needs quotes"
            )


def _has_name(override: str) -> bool:
    """Whether Hydra accepts the value for a group: a name, names, settings, a sweep, or a deletion.

    Invalid overrides are left to Hydra.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except OverrideParseException:
        return True
    return parsed.is_delete() or parsed.is_sweep_override() or isinstance(parsed.value(), str | list | dict)


def check_config_files(arguments: Sequence[str]) -> None:
    """Raise UserError if a file that the command line names, as by `data=mine`, is not valid YAML.

    The files in its defaults list are checked as well. Hydra would end with a traceback.
    """
    folders = [CONF_DIR]
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, _, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            folders.append(Path(value or following))
    named: list[Path] = []
    for group, _, names in (argument.lstrip("+").partition("=") for argument in arguments):
        named += [Path(group.partition("@")[0], f"{name}.yaml") for name in names.split(",")]
    checked: set[Path] = set()
    while named:
        file = named.pop()
        for path in {folder / file for folder in folders} - checked:
            checked.add(path)
            # Path.is_file raises OSError for a value that is too long for a file name.
            if not os.path.isfile(path):  # noqa: PTH113
                continue
            try:
                config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            except (YAMLError, ValueError, OSError) as error:
                raise UserError(f"{path}{_problem(error)}") from None
            named += _defaults(config, file.parent)


def _defaults(config: Any, group: Path) -> list[Path]:
    """The files in the defaults list of a file in `group`. Paths are relative to the configuration folder."""
    found: list[Path] = []
    defaults = config.get("defaults") if isinstance(config, dict) else None
    for entry in defaults if isinstance(defaults, list) else []:
        for key, names in entry.items() if isinstance(entry, dict) else [("", entry)]:
            words = str(key).partition("@")[0].split()
            name = words[-1] if words else ""  # after optional and override
            folder = Path(name.lstrip("/")) if name.startswith("/") else group / name
            found += [folder / f"{one}.yaml" for one in (names if isinstance(names, list) else [names])]
    return found


def _problem(error: Exception) -> str:
    """The line of an error in a file, and what is wrong."""
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f", line {mark.line + 1}"
    return f"{line}: must be valid YAML; {getattr(error, 'problem', None) or first_line(error)}"
