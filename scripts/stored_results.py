"""Results that a script keeps in its folder, so that it continues where it was stopped."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from options import stop

from mmoe.atomic import write_text

# Results depend neither on where the rows are, nor on the machine that computes them.
MACHINE_KEYS = ("dir", "url", "cache_dir", "dask_address")  # of a configuration's part `data`
MACHINE_OVERRIDES = ("threads", *(f"data.{key}" for key in MACHINE_KEYS))


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a JSON file. If it is missing, it is made first."""
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def store_settings(
    path: Path, settings: Mapping[str, Any], overrides: Sequence[str], results: Sequence[Path] = ()
) -> None:
    """Write settings and overrides to the file `path`, unless `check_settings` stops."""
    write_json(path, check_settings(path, settings, overrides, results))


def check_settings(
    path: Path, settings: Mapping[str, Any], overrides: Sequence[str], results: Sequence[Path] = ()
) -> dict[str, Any]:
    """Stop if the file `path`, which describes the results in its folder, has other settings or overrides.

    If the file is missing, the files `results` must be missing too. A setting that the file lacks is
    accepted. The settings of the machine are not compared, and overrides of them are not kept.

    Returns:
        The content of the file with the given settings and overrides.
    """
    for result in results:
        if result.exists() and not path.is_file():
            stop(f"{result}: has results of unknown settings; give another out=..., or remove it")
    given = {**settings, "overrides": without_machine_overrides(overrides)}
    stored = json.loads(path.read_text()) if path.is_file() else {}
    before = {**given, **stored}
    differ = [
        key for key in settings if without_machine_keys(before[key]) != without_machine_keys(settings[key])
    ]
    if without_machine_overrides(before["overrides"]) != given["overrides"]:
        differ.append("overrides")
    if differ:
        what = f"holds results of other settings: {', '.join(differ)}"
        stop(f"{path.parent}: {what}; give another folder=... and out=...")
    return {**before, **given}


def without_machine_keys(setting: Any) -> Any:
    """A setting, which may be a configuration, without the keys of the machine."""
    if not isinstance(setting, Mapping):
        return setting
    return {key: without_machine_keys(value) for key, value in setting.items() if key not in MACHINE_KEYS}


def without_machine_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that results depend on, sorted."""
    return sorted(one for one in overrides if one.partition("=")[0].lstrip("+") not in MACHINE_OVERRIDES)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(content, indent=1) + "\n")
