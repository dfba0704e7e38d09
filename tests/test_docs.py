"""The site: its configuration reference and its navigation are complete, and its links work."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import mmoe
from mmoe import CONF_DIR, analysis

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))
from config_reference import COMMANDS, GROUPS, read, reference  # noqa: E402


def leaves(node: object, key: str = "") -> list[str]:
    """The dotted keys of a configuration that hold no mapping, without those of Hydra."""
    if not isinstance(node, dict):
        return [key]
    children = {f"{key}.{name}" if key else str(name): child for name, child in node.items()}
    found = [leaves(child, name) for name, child in children.items() if name != "hydra"]
    return [one for part in found for one in part]


def test_the_reference_has_every_file_and_setting():
    page = reference()
    paths = list(CONF_DIR.rglob("*.yaml"))
    assert {path.stem for path in CONF_DIR.glob("*.yaml")} == set(COMMANDS)
    assert {path.name for path in CONF_DIR.iterdir() if path.is_dir()} == set(GROUPS)
    for path in paths:
        title = f"mmoe.{path.stem}" if path.parent == CONF_DIR else f"{path.parent.name}={path.stem}"
        assert f"### `{title}`\n" in page
        _, settings = read(path.read_text("utf-8"))
        keys = [setting.key for setting in settings]
        for key in leaves(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):
            # A mapping in braces is one setting.
            assert any(key == known or key.startswith(f"{known}.") for known in keys), (path, key)


def test_no_comment_is_lost():
    page = re.sub(r"\\(.)", r"\1", reference())
    for path in CONF_DIR.rglob("*.yaml"):
        text = path.read_text("utf-8").partition("\nhydra:")[0]
        for comment in re.findall(r"(?:^|\s)#+\s+(.*)$", text, re.MULTILINE):
            assert comment.startswith("@package") or comment.strip() in page, (path, comment)


def test_comments_belong_to_their_settings():
    head, settings = read(
        "# The file.\n# It has two lines.\na: 1  # one\n# Above b.\nb: [x, 'y']\nc:  # a block\n"
        "  d: |-\n    text\n"
        "  e: null                # first\n                         # second\n  f: 2\n"
    )
    assert head == "The file. It has two lines."
    assert [(s.key, s.comment) for s in settings] == [
        ("a", "one"), ("b", "Above b."), ("c", "a block"), ("c.d", ""), ("c.e", "first second"), ("c.f", ""),
    ]  # fmt: skip
    assert [s.default for s in settings][:2] == ["1", "[x, 'y']"]


def test_every_public_name_is_in_the_api_reference():
    text = (ROOT / "docs/api.md").read_text("utf-8")
    named = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for name in [name for name in mmoe.__all__ if name not in ("CONF_DIR", "__version__")]:
        found = getattr(mmoe, name)
        assert f"{found.__module__}.{found.__name__}" in named
    for name in analysis.__all__:
        assert f"{getattr(analysis, name).__module__}.{name}" in named


def test_all_files_name_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == mmoe.__version__
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == mmoe.__version__


def test_the_navigation_has_every_page():
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    navigation = str(yaml.safe_load(text)["nav"])
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {"index.md", "configuration.md"}
    assert pages == set(re.findall(r"\w+\.md", navigation))


@pytest.mark.skipif(not find_spec("latex2mathml") or not find_spec("mkdocs"), reason="needs mmoe[docs]")
def test_links_and_equations_of_the_site():
    from site_hooks import on_page_content, rewritten

    assert rewritten("data", "docs/data.md#files", "README.md", "index.md", None) == "[data](data.md#files)"
    assert rewritten("it", "../README.md#a", "docs/x.md", "x.md", None) == "[it](index.md#a)"
    assert rewritten("up", "../../x.md", "docs/results/a/b.md", "results/a/b.md", None) == "[up](../../x.md)"
    assert rewritten("the models", "../src/mmoe", "docs/x.md", "x.md", None) == "the models (`src/mmoe`)"
    url = rewritten("conf/a", "../conf/a", "docs/x.md", "x.md", "https://example.org/r/")
    assert url == "[conf/a](https://example.org/r/blob/main/conf/a)"
    shown = on_page_content('<p><span class="arithmatex">\\(x_1 &lt; 2\\)</span></p>')
    assert "<math" in shown
    assert "arithmatex" not in shown
