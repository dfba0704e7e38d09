"""Results that a script keeps in its folder, so that it continues where it was stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from options import stop

from mmoe.atomic import write_text


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a JSON file. If it is missing, it is made first."""
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Stop if the folder of `path` holds results of other settings. The JSON file `path` keeps them."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    differ = [key for key in settings if settings[key] != before.get(key, settings[key])]
    if differ:
        stop(f"folder={path.parent}: holds results of other settings of {', '.join(differ)}")
    write_json(path, {**before, **settings})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(content, indent=1) + "\n")
