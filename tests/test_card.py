"""The model card of a run, and the page of a sweep."""

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st

import mmoe
from mmoe.analysis.card import write_card
from mmoe.analysis.page import block, code, table, to_html
from mmoe.data.columns import Categorical, Numeric
from mmoe.data.schema import Schema
from mmoe.intervals import bootstrap_intervals, rough_intervals
from mmoe.tasks import Binary, Count, Multiclass, Regression
from mmoe.training.report import metric_text

QUICK = ["logger=none", "trainer.max_epochs=1", "hydra.run.dir=run", "card=true"]
VOID = ("meta", "img", "br", "hr")


class Page(HTMLParser):
    """A page whose tags must be balanced: its tags, the text of its code spans, and its cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.codes: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "code":
            self.codes.append("")
        elif tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "code" in self.open:
            self.codes[-1] += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def read_page(folder: Path, name: str = "card") -> tuple[str, Page]:
    """The Markdown and the HTML of a page. The HTML needs nothing but itself and runs nothing."""
    html = (folder / f"{name}.html").read_text("utf-8")
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object"} & set(names)
    for tag, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,")
            assert attributes["alt"]
    return (folder / f"{name}.md").read_text("utf-8"), page


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_name_comes_back_from_a_table(first: str, second: str):
    cells = [code(first), code(second)]
    page = Page(to_html(Path(), "title", table(cells, [cells])))
    shown = [
        "".join(c if c.isprintable() else " " for c in text).encode("utf-8", "replace").decode()
        for text in (first, second)
    ]
    assert len(page.cells) == 2
    # Blanks at the ends and repeated ones do not show on a page.
    for row in page.cells:
        assert [cell.split() for cell in row] == [text.split() for text in shown]


@given(st.text())
def test_any_text_comes_back_from_a_block(text: str):
    text = text.replace("\r", "\n").replace("\0", "").strip()
    page = Page(to_html(Path(), "<title>", block(text, "yaml")))
    assert page.codes[0].strip() == text


def test_a_metric_has_half_its_interval_if_that_is_known():
    assert metric_text(0.93456, 0.00123) == "0.9346 ± 0.0012"
    assert metric_text(1025.6454, 39.71) == "1,025.6 ± 39.7"  # five digits are enough
    assert metric_text(-1112051.7, 412078.5) == "-1,112,052 ± 412,078"
    assert (
        metric_text(0.93456) == metric_text(0.93456, math.nan) == metric_text(0.93456, math.inf) == "0.9346"
    )
    assert metric_text(math.nan, math.nan) == "n/a"


def test_rough_intervals_are_close_to_the_bootstrap():
    random = np.random.default_rng(0)
    tasks = [
        Binary("a", ("1",), name="a"),
        Regression("b", name="b", mean=0.0, std=1.0),
        Count("c", name="c"),
        Multiclass("d", name="d", classes=("x", "y")),
    ]
    n = 4000
    p = random.random(n)
    predicted = np.column_stack([p, random.normal(size=n), random.gamma(2, 1, n), p, 1 - p])
    positive = random.random((2, n)) < p
    labels = np.column_stack([positive[0], random.normal(size=n), random.poisson(2, n), ~positive[1]])
    known = random.random((n, 4)) < 0.8
    exact = bootstrap_intervals(tasks, predicted, labels.astype(float), 500, 0, known)
    rough = rough_intervals(tasks, predicted, labels.astype(float), known)
    assert rough.keys() == exact.keys()
    for task, metrics in exact.items():
        assert metrics.keys() == rough[task].keys()
        for name, (low, high) in metrics.items():
            assert 0.6 < rough[task][name] / ((high - low) / 2) < 1.6, (task, name)


def test_rough_intervals_of_many_rows_come_from_a_sample(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    p = random.random((20_000, 1))
    labels, known = (random.random(p.shape) < p).astype(float), np.ones(p.shape, bool)
    task = [Binary("a", ("1",), name="a")]
    whole = rough_intervals(task, p, labels, known)["a"]
    monkeypatch.setattr("mmoe.intervals.ROUGH_WORK", 50 * 4000)
    sampled = rough_intervals(task, p, labels, known)["a"]
    for name, half in whole.items():
        assert sampled[name] != half
        assert 0.5 < sampled[name] / half < 2


def test_a_run_has_a_card(train: Command):
    assert train("experiment=smoke", *QUICK, "figures=true").code == 0
    markdown, page = read_page(Path("run"))
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert sorted(links) == sorted(f"figures/{path.name}" for path in Path("run/figures").iterdir())
    assert sum(tag == "img" for tag, _ in page.tags) == len(links)
    metrics = json.loads(Path("run/metrics.json").read_text())
    for task in ("income", "marital"):
        (line,) = (row for row in page.cells if row[:2] == [task, "test"])
        assert re.fullmatch(rf"{metrics['test'][task]['auroc']:.4f} ± 0\.\d{{4}}", line[2])
    gates = next(row for row in page.cells if row[0] == "income" and len(row) == 3 + 8)
    assert sum(map(float, gates[3:])) == pytest.approx(1, abs=0.005)
    assert "synthetic" in markdown.partition("## Limits")[2].partition("##")[0]
    assert mmoe.__version__ in page.codes
    assert str(Path.cwd()) not in markdown
    run = mmoe.load("run")
    write_card(run)  # everything is read and imported
    started = time.process_time()
    write_card(run)
    assert time.process_time() - started < 1  # 0.1 s on a free core


def test_a_card_without_figures_gates_or_test_rows(train: Command):
    off = ["figures=false", "model=single_task", "+trainer.limit_test_batches=0"]
    assert train("experiment=smoke", *QUICK, *off).code == 0
    markdown, page = read_page(Path("run"))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "## Figures" not in markdown
    assert "## Gates" not in markdown
    assert "No test row was used" in markdown


def test_the_card_of_replicas_has_their_intervals(train: Command):
    assert train("experiment=smoke", *QUICK, "replicas=2", "figures=false").code == 0
    markdown, page = read_page(Path("run"))
    half = json.loads(Path("run/metrics.json").read_text())["half_interval"]["test"]["income"]["auroc"]
    (line,) = (row for row in page.cells if row[:2] == ["income", "test"])
    assert line[2].endswith(f"± {half:.4f}")
    assert "over 2 replicas" in markdown
    assert "| `income` (main task) | binary | `income` | 5,000 | " in markdown  # all replicas have these rows


def test_no_card_if_none_is_wanted_and_a_missing_one_is_written(train: Command):
    assert train("experiment=smoke", *QUICK[:-1], "card=false").code == 0
    assert not list(Path("run").glob("card*"))
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("card: false", "card: true"))
    assert train("resume=run").code == 0
    read_page(Path("run"))
    assert train("resume=run").code == 2


def test_no_other_file_replaces_the_card(command: Callable[[str], Command], smoke_run: Path):
    result = command("evaluate")(f"run={smoke_run}", "resamples=0", f"out={smoke_run}/card.md")
    assert result.code == 2
    assert "must not be a file of the run" in result.err


HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`tick`",
    "![x](http://evil)",
    "Größe 🎈",
    "a\\",
    "**b**",
    "&lt;",
    "](",
]


def test_hostile_names_many_columns_and_many_tasks(smoke_run: Path):
    """A run of 50 tasks and 2,009 columns with names that mean something in Markdown or HTML."""
    shutil.copytree(smoke_run, "run")
    random = np.random.default_rng(0)
    tasks = [Binary(f"<b>task</b> {i}|", HOSTILE[:2], name=f"t|{i}<i>") for i in range(49)]
    tasks.append(Multiclass("class", name="`kinds`", classes=tuple(sorted(HOSTILE))))
    schema = Schema(
        tuple(Categorical(name, tuple(sorted(HOSTILE))) for name in HOSTILE),
        tuple(Numeric(f"number|{i}", 0.0, 1.0, (0.0, 1.0)) for i in range(2000)),
        tuple(tasks),
        num_rows={"train": 300, "val": 120, "test": 120},
    )
    Path("run/schema.json").write_text(schema.to_json(), "utf-8")
    metrics = json.loads(Path("run/metrics.json").read_text())
    for split in ("val", "test"):
        metrics[split] = {task.name: dict.fromkeys(task.metric_names, 0.5) for task in tasks}
    Path("run/metrics.json").write_text(json.dumps(metrics))
    predictions: dict[str, Any] = {"row": range(120)}
    for task in tasks:
        is_binary = isinstance(task, Binary)
        predictions[f"{task.name}_label"] = random.choice([0, 1] if is_binary else list(task.classes), 120)
        predictions |= {name: random.random(120) for name in task.prediction_columns}
    pd.DataFrame(predictions).to_parquet("run/predictions.parquet")
    history = {"seed": [0], "epoch": [metrics["epoch"]], "step": [1], "val/gates/unused_experts": [1.0]}
    for task in tasks:
        history |= {f"val/{task.name}/gate_{e}": [0.5] for e in range(2)}
        history |= {f"val/{task.name}/{name}": [1.0] for name in ("effective_experts", "polarised_rows")}
    pd.DataFrame(history).to_csv("run/history.csv", index=False)
    run = mmoe.load("run")
    write_card(run)
    markdown, page = read_page(Path("run"))
    assert set(HOSTILE) <= set(page.codes)
    assert {task.column for task in tasks} | {task.name for task in tasks} <= set(page.codes)
    assert "1,959 more columns" in markdown
    assert {len(row) for row in page.cells} == {2, 3, 5, 7}  # no cell was split
    started = time.process_time()
    write_card(run)
    assert time.process_time() - started < 1  # 0.2 s on a free core


def test_limits_follow_from_the_run(train: Command):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(size=400), "day": range(400)})
    frame["rare"] = np.arange(400) % 8 == 0
    frame["some"] = pd.Series(random.integers(0, 2, 400), dtype="Int64").where(random.random(400) < 0.5)
    table = mmoe.Table(
        frame,
        tasks={"rare": Binary("rare", class_weights="balanced"), "some": "some"},
        columns={"x": "numeric"},
        test={"fraction": 0.25, "by": "day"},
    )
    mmoe.fit(table, "run", "logger=none", "trainer.max_epochs=1", "figures=false", "model.num_experts=2")
    text = (Path("run") / "card.md").read_text("utf-8").partition("## Limits")[2].partition("\n## ")[0]
    assert "other values of `day`" in text
    assert "fewer than 100 of their rarest class: `rare`" in text
    assert "unknown in some test rows, which their metrics leave out: `some`." in text
    assert "trained with class weights" in text
    assert "The best epoch is the last one" in text
    assert "synthetic" not in text


def test_the_card_of_a_table_with_several_test_files(tmp_path: Path):
    rows = pd.DataFrame({"x": np.arange(120.0), "click": np.arange(120) % 2})
    for name in ("first", "second"):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in ("first", "second")]
    run = mmoe.fit(mmoe.Table(rows, tasks=["click"], test=files), tmp_path / "run", "trainer.max_epochs=1")
    write_card(run)
    assert "## Limits" in (run.folder / "card.md").read_text()


def test_the_page_of_a_sweep(train: Command, command: Callable[[str], Command]):
    result = train(
        "-m", "experiment=smoke", "logger=none", "trainer.max_epochs=1", "model.num_experts=1,2", "card=true",
        "+trainer.limit_train_batches=3", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert command("compare")("sweep").code == 0
    markdown, page = read_page(Path("sweep"), "compare")
    assert "model.num_experts" in page.codes
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert links == ["0/card.md", "0/card.html", "1/card.md", "1/card.html"]
    assert all((Path("sweep") / link).exists() for link in links)
    assert "(compare.png)" in markdown
    assert "one seed" in markdown
    compared = pd.read_csv("sweep/compare.csv")
    assert [row[0] for row in page.cells[1:]] == [str(value) for value in compared["model.num_experts"]]
