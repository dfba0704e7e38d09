"""Configuration files: invalid YAML gives one line that names the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("option", [["--config-dir", "conf"], ["--config-dir=conf"], ["-cd", "conf"]])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: 1\nb: 2\nb: 3\n", "line 3: must be valid YAML; found duplicate key b"),
        ("a:\n\tb: 2\n", "line 2: must be valid YAML; found character"),
        ("a: [1\n", "must be valid YAML; expected ',' or ']'"),
        ("a: b: 2\n", "line 1: must be valid YAML; mapping values are not allowed here"),
    ],
)
def test_invalid_yaml_is_one_line(train: Callable[..., Any], option: list[str], content: str, problem: str):
    Path("conf/data").mkdir(parents=True)
    Path("conf/data/mine.yaml").write_text(content)
    Path("conf/data/other.yaml").write_text("a: [\n")  # no argument selects this file
    done = train(*option, "data=mine")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: conf/data/mine.yaml")
    assert problem in done.err
    assert not Path("runs").exists()


def test_invalid_yaml_that_an_experiment_names_is_one_line(train: Callable[..., Any]):
    for group in ("data", "experiment"):
        Path("conf", group).mkdir(parents=True)
    Path("conf/data/mine.yaml").write_text("a: 1\na: 2\n")
    Path("conf/experiment/x.yaml").write_text("# @package _global_\ndefaults:\n  - override /data: mine\n")
    Path("conf/experiment/y.yaml").write_text("defaults:\n  - x\n  - y\n  - _self_\n")
    for experiment in ("x", "y"):
        done = train("--config-dir", "conf", f"experiment={experiment}")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith("error: conf/data/mine.yaml, line 2: must be valid YAML")


def test_a_value_that_is_too_long_for_a_file_name(train: Callable[..., Any]):
    done = train(f"data={'a' * 300}", "experiment=smoke")
    assert "OSError" not in done.err
    assert "Could not find 'data/aaa" in done.err
