"""Command-line arguments of the scripts: `name=value` options, and overrides for the training."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn


def parse(
    arguments: Sequence[str],
    defaults: Mapping[str, str | None],
    choices: Mapping[str, Sequence[str]],
    minimums: Mapping[str, int],
) -> tuple[dict[str, str], list[str]]:
    """Split the arguments into options, completed with `defaults`, and overrides.

    An option that is not among its `choices`, or not an integer of at least its minimum, stops the script.
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
    for key, minimum in minimums.items():
        if not str(options[key]).isdigit() or int(options[key]) < minimum:
            stop(f"{key}={options[key]}: must be an integer of at least {minimum}")
    return options, overrides


def some_of(options: Mapping[str, str], key: str, known: Collection[str]) -> list[str]:
    """The value of an option that is a list of names. A name that is not `known` stops the script."""
    names = options[key].split(",")
    if not set(names) <= set(known):
        stop(f"{key}={options[key]}: must be some of {', '.join(known)}")
    return names


def integers(options: Mapping[str, str], key: str, least: int) -> list[int]:
    """The value of an option that is a list of integers of at least `least`."""
    values = options[key].split(",")
    if not all(value.isdigit() and int(value) >= least for value in values):
        stop(f"{key}={options[key]}: must be integers of at least {least}")
    return [int(value) for value in values]


def stop(message: str) -> NoReturn:
    """Report a mistake in one line and exit with code 2, as the commands of mmoe do."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
