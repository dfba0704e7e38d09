"""Arguments of the reproduction scripts: `name=value` options of their own, and overrides of the training."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn


def parse(
    arguments: Sequence[str],
    defaults: Mapping[str, str | None],
    choices: Mapping[str, Sequence[str]],
    least: Mapping[str, int],
) -> tuple[dict[str, str], list[str]]:
    """The options with `defaults`, and what is left as overrides.

    A value that is not one of its `choices`, or an integer below its `least`, ends the script.
    """
    options: dict[str, Any] = dict(defaults)
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in options:
            options[key] = value
        else:
            overrides.append(argument)
    for key, known in choices.items():
        if options[key] not in known:
            stop(f"{key}={options[key]}: must be {', '.join(known[:-1])} or {known[-1]}")
    for key, lowest in least.items():
        if not str(options[key]).isdigit() or int(options[key]) < lowest:
            stop(f"{key}={options[key]}: must be an integer of at least {lowest}")
    return options, overrides


def stop(message: str) -> NoReturn:
    """Report a mistake as the entry points do."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def call(module: str, *arguments: str, **how: Any) -> None:
    """Run an entry point; its mistakes are said by itself, and end the script with its exit code."""
    quiet = {"stdout": subprocess.DEVNULL} if module == "train" else {}
    command = [sys.executable, "-m", f"mmoe.{module}", *arguments]
    code = subprocess.run(command, **quiet, **how).returncode
    if code:
        raise SystemExit(code)
