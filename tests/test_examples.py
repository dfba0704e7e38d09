"""The worked examples in docs/ work: their files are written, their commands and their code are run."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

from mmoe import tasks
from mmoe.tasks import KINDS, serialization

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = ("add_a_method", "add_a_task_kind", "add_a_dataset")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
MODULES = ("mymethods", "amount", "mydata")


@pytest.mark.parametrize("page", EXAMPLES)
def test_a_worked_example_runs(page: str, command: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(serialization, "KINDS", dict(KINDS))
    monkeypatch.setattr(tasks, "KINDS", serialization.KINDS)
    found = BLOCK.findall((DOCS / f"{page}.md").read_text("utf-8"))
    assert len(found) >= 3
    try:
        for language, title, text in found:
            if title:
                Path(title).parent.mkdir(parents=True, exist_ok=True)
                Path(title).write_text(text, "utf-8")
            elif language == "python":
                exec(text, {})
            else:
                assert language == "sh"
                for line in text.splitlines():
                    name, *arguments = shlex.split(line.removeprefix("python -m mmoe."))
                    result = command(name)(*arguments)
                    assert result.code == 0, result.err
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
    for folder in Path("runs").iterdir():
        own = [
            name for name in MODULES if f"_target_: {name}." in (folder / "config.yaml").read_text("utf-8")
        ]
        trust = f', trust=["{own[0]}"]' if own else ""
        assert f'mmoe.load("."{trust})' in (folder / "card.md").read_text("utf-8")
