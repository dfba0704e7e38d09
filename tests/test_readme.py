"""README and docs/ are true: their Python runs, their commands compose, and what they name exists."""

import re
import shlex
import subprocess
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Command, Result
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

import mmoe
from mmoe import CONF_DIR
from mmoe.data.census import read
from mmoe.data.census_files import SAMPLE_DIR
from mmoe.describe import name_input

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
EXAMPLES = [f"docs/add_a_{name}.md" for name in ("method", "task_kind", "dataset")]  # test_examples runs them
EVERYTHING = "\n".join(PAGES.values())
# Not the experiment that a search wrote, which test_tune.py trains, nor the configuration of a run folder.
COMMANDS = [
    command
    for command in re.findall(r"^(?:python|torchrun .*?) -m mmoe\.(\w+) ([^#\n]*)", EVERYTHING, re.MULTILINE)
    if (CONF_DIR / f"{command[0]}.yaml").exists() and not command[1].startswith("--config-")
]
MINE = "conf/data/mine.yaml"  # what the reader writes
GROUPS = [path.name for path in CONF_DIR.iterdir() if path.is_dir()]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def composed(name: str, arguments: str) -> None:
    """Compose a command's configuration. A sweep is composed with its first values."""
    words = shlex.split(arguments)
    if name == "describe":
        words = name_input(words)
    overrides = [word for word in words if not word.startswith("--") and word not in ("-m", "job")]
    if "-m" in words:
        overrides = [word if "[" in word else word.split(",")[0] for word in overrides]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        compose(name, overrides=overrides)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def own_rows() -> None:
    """Write data/train.csv and data/new.csv, which the README names."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"city": random.choice(["Bonn", "Cork"], 300), "amount": random.gamma(2.0, 10.0, 300)}
    )
    rows["click"] = (random.random(300) < rows["amount"] / 40).astype(int)
    rows["spend"] = (rows["amount"] * random.random(300)).where(rows["click"] == 1)
    Path("data").mkdir()
    rows.to_csv("data/train.csv", index=False)
    rows.drop(columns=["click", "spend"]).to_csv("data/new.csv", index=False)


def test_every_command_of_the_readme_runs(command: Callable[[str], Command]):
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    own_rows()
    done = 0
    for line in commands:
        words = shlex.split(line, comments=True)
        if words[0] == "make":  # not run: make would install mmoe once more
            plan = subprocess.run(
                [*words, "--dry-run", "-C", ROOT], capture_output=True, text=True, check=True
            )
            assert f"-m {'mmoe.train experiment=census' if words[1] == 'train' else 'pytest'}" in plan.stdout
        elif words[0] == "pip":  # neither is this, but its extras exist
            assert set(re.findall(r"\[(\w+)\]", line)) <= set(metadata("mmoe").get_all("Provides-Extra"))
        else:
            assert words[:2] == ["python", "-m"]
            if "runs/mine/" in line:
                newest = max(Path("runs/mine").iterdir())
                words = [re.sub(r"runs/mine/(\.\.\.|<time>)", str(newest), word) for word in words]
            result: Result = command(words[2].removeprefix("mmoe."))(*words[3:])
            assert result.code == 0, result.err
        done += 1
    assert done == 8
    assert {"click_probability", "spend_prediction"} <= set(pd.read_parquet("scores.parquet"))
    (compared,) = Path("runs/mine").glob("*/compare.csv")
    methods = {"MMoE", "SharedBottom", "SingleTask", "LightGBM"}
    assert set(pd.read_csv(compared)["model"]) == methods


def test_python_runs_and_runs_have_what_is_listed(train) -> None:
    own_rows()
    result: Result = train("experiment=smoke", "trainer.max_epochs=1")
    assert result.code == 0
    (folder,) = Path("runs/smoke").iterdir()
    read(SAMPLE_DIR / "census-income.test.gz").head(100).to_parquet("people.parquet")
    found = blocks("\n".join(text for page, text in PAGES.items() if page not in EXAMPLES))
    assert len(found) >= 5
    for block in found:
        given = folder.parent if "sweep_table" in block else folder
        exec(block.replace("runs/census/<time>", str(given)), {})
    run = mmoe.load(folder)
    listed = re.findall(r"`run\.(\w+)(?:`|\()", PAGES["docs/prediction.md"])
    assert len(listed) >= 10
    for name in listed:
        getattr(run, name)


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_commands_compose(name: str, arguments: str):
    composed(name, arguments)


def test_commands_were_found_and_a_wrong_one_would_fail():
    names = {"train", "evaluate", "predict", "export", "extract", "tune", "describe"}
    assert {name for name, _ in COMMANDS} == names
    assert len(COMMANDS) >= 20
    with pytest.raises(ConfigCompositionException):
        composed("train", "model.number_of_experts=3")


def test_every_config_that_is_named_exists():
    everything = "\n".join(text for page, text in PAGES.items() if page not in EXAMPLES)
    named = set(re.findall(rf"(?<![\w./@])({'|'.join(GROUPS)})=(\w+)", everything))
    assert {group for group, _ in named} >= {"data", "experiment", "features", "inputs", "logger", "model"}
    for group, name in named - {("data", Path(MINE).stem), ("data", "None")}:
        assert (CONF_DIR / group / f"{name}.yaml").exists() or name == "tuned_census_ple", f"{group}={name}"


def test_tables_list_every_config():
    for group in ("data", "features", "inputs"):
        for path in (CONF_DIR / group).glob("*.yaml"):
            assert f"| `{group}={path.stem}` |" in PAGES["docs/data.md"]
    tables = {"experiment": PAGES["docs/tutorial.md"], "model": PAGES["docs/methods.md"]}
    for group, text in tables.items():
        for path in (CONF_DIR / group).glob("*.yaml"):
            assert f"| `{path.stem}` |" in text
    for path in (CONF_DIR / "trainer").glob("*.yaml"):
        assert f"`{path.stem}`" in PAGES["docs/scaling.md"]


def test_every_analysis_function_is_listed():
    from mmoe import analysis

    tables = PAGES["docs/analysis.md"].partition("## Tables")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", tables))
    assert listed >= set(analysis.__all__)
    for name in listed - {"Run"}:
        assert hasattr(analysis, name), name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text("utf-8")), target


def test_files_that_are_named_exist():
    paths = set(re.findall(r"(?<![\w/.])(?:conf|docs|notebooks|scripts|src|tests)/[\w/.]*\w", EVERYTHING))
    assert len(paths) > 20
    written = {MINE, *re.findall(r'title="([^"]+)"', EVERYTHING)}
    for path in paths - written:
        assert (ROOT / path).exists(), path
    modules = set(re.findall(r"`([\w/]+\.py)`", PAGES["docs/code.md"]))
    modules = {name for name in modules if not name.startswith("tests/")}
    for name in modules:
        assert (ROOT / "src/mmoe" / name).exists(), name
    commands = {path.name for path in (ROOT / "src/mmoe").glob("[!_]*.py")}
    assert commands <= modules


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 250
    for page in PAGES:
        assert page == "README.md" or f"| [{page}]({page}) |" in README


@pytest.mark.parametrize("page", PAGES)
def test_numbers_have_a_leading_zero(page: str):
    assert not re.findall(r".*(?<![\w.)\]])\.\d.*", CODE.sub("", PAGES[page]))
