"""Modules import in one direction: nothing upstream imports what comes after it."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import mmoe

ROOT = Path(mmoe.__file__).parent
REPOSITORY = Path(__file__).parent.parent
# From upstream to downstream; the parts of one line may import each other.
ORDER = (
    ("__init__", "errors", "checks", "atomic"),
    ("raw",),
    ("metrics",),
    ("tasks",),
    ("data",),
    ("models",),
    ("balancing",),
    ("build", "intervals", "cli"),
    ("training",),
    ("run",),
    ("analysis",),
    (
        "train",
        "evaluate",
        "predict",
        "export",
        "extract",
        "tune",
        "compare",
        "describe",
        "api",
    ),
)
PLACES = {part: place for place, parts in enumerate(ORDER) for part in parts}
# This import makes all commands start faster; `command` uses nothing of the module.
PRELOADED = ("cli/command.py", "mmoe.run")


def imported(path: Path) -> set[str]:
    """The modules of mmoe that a file imports, at its top or later."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "mmoe":
            found |= {f"mmoe.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmoe."):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("mmoe.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_what_comes_after_it(path: Path):
    relative = path.relative_to(ROOT)
    own = PLACES[relative.parts[0].removesuffix(".py")]
    for module in imported(path) - {"mmoe.CONF_DIR"}:
        if (relative.as_posix(), module) != PRELOADED:
            assert PLACES[module.split(".")[1]] <= own, f"{relative} imports {module}"


def test_every_part_has_a_place():
    parts = {path.stem for path in ROOT.glob("*.py")}
    parts |= {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/__init__.py")}
    assert parts == set(PLACES)


def test_every_extra_that_is_named_exists():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [root / "pyproject.toml", root / "README.md"]
    files += [
        path
        for folder in ("src", "docs", "conf", "scripts", "notebooks")
        for path in (root / folder).rglob("*")
    ]
    found = set()
    for path in files:
        if path.suffix in (".toml", ".md", ".py", ".yaml", ".ipynb"):
            for names in re.findall(r"(?:mmoe|'\.|\"\.)\[([a-z0-9,]+)\]", path.read_text("utf-8")):
                found |= set(names.split(","))
    assert found <= set(extras)
    assert found >= {"tune", "export", "lightgbm"}


def test_scripts_and_notebooks_import_names_that_exist():
    found = 0
    for path in [file for folder in ("scripts", "notebooks") for file in (REPOSITORY / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mmoe":
                module = importlib.import_module(node.module)
                for name in node.names:
                    is_module = (Path(str(module.__file__)).parent / f"{name.name}.py").exists()
                    assert hasattr(module, name.name) or is_module, f"{path}: {node.module}.{name.name}"
                    found += 1
    assert found > 50
