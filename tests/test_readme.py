"""The README keeps its word: its Python runs, its commands compose, what it lists is what there is."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import Result, config
from hydra.errors import ConfigCompositionException

from mmoe import CONF_DIR

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
# What a search found is trained by test_tune.py.
COMMANDS = re.findall(r"^python -m mmoe\.train (?!--config-dir)([^#\n]*)", README, re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_code_runs(train) -> None:
    result: Result = train("experiment=smoke", "trainer.max_epochs=1")
    assert result.code == 0
    (folder,) = Path("runs/smoke").iterdir()
    for block in blocks("python"):
        exec(block.replace("runs/census/<time>", str(folder)), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str):
    overrides = [word for word in shlex.split(command) if not word.startswith("-") and word != "job"]
    config(*(word.split(",")[0] if "num_experts=1,2" in word else word for word in overrides))


def test_commands_were_found_and_a_wrong_one_would_fail():
    assert len(COMMANDS) >= 6
    with pytest.raises(ConfigCompositionException):
        config("model.number_of_experts=3")


def test_tables_list_every_config():
    listed = set(re.findall(r"`(?:(data|features|inputs)=)(\w+)`", README))
    for group in ("data", "features", "inputs"):
        assert {name for g, name in listed if g == group} >= {
            path.stem for path in (CONF_DIR / group).glob("*.yaml")
        }
    for path in (CONF_DIR / "experiment").glob("*.yaml"):
        assert f"| `{path.stem}` |" in README
