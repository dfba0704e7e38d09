"""The script that reproduces the paper's census tables, on the bundled sample."""

import subprocess
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import pandas as pd
import processes
import pytest
from conftest import Result
from matplotlib.figure import Figure
from omegaconf import OmegaConf

QUICK = [
    "group=1", "seeds=3", "chunk=3", "trials=1", "methods=mmoe,single_task", "folder=work", "out=out",
    "+trainer.limit_train_batches=3", "data.url=http://127.0.0.1:9/none.zip",
]  # fmt: skip


def reproduce(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return processes.run(partial(processes.script, "reproduce_census"), *QUICK, *arguments)


@pytest.mark.slow
def test_tables_figure_and_configurations():
    done = reproduce("sample=true")
    assert done.returncode == 0, done.stderr
    text = Path("out/group1.md").read_text()
    assert "THE BUNDLED SAMPLE" in text
    assert "20,000 train, 5,000 val, 5,000 test" in text
    runs = pd.read_csv("out/group1.csv")
    assert len(runs) == 6
    for method, group in runs.groupby("method"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} |") and "/" in line]
        areas = group["test_income_auroc"]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == "3"
        assert cells[2] == f"{areas.max():.4f}"
        assert cells[3].startswith(f"{areas.mean():.4f} ± ")
        assert cells[4] == f"{areas.std():.4f}"
        assert cells[5] == f"{group.loc[areas.idxmax(), 'test_marital_auroc']:.4f}"
    assert "0.9410 / 0.9359" in text
    areas = runs.pivot(index="seed", columns="method", values="test_income_auroc")
    paired = areas["single_task"] - areas["mmoe"]
    half = 4.302653 * paired.std() / 3**0.5  # Student's t with 2 degrees of freedom
    assert f"| single_task | - | {paired.mean():+.4f} ± {half:.4f}" in text
    assert Path("out/group1.png").stat().st_size > 10_000
    assert len(list(Path("out/configs/experiment").iterdir())) == 2

    # A stopped training starts again; finished ones do not.
    before = Path("work/group1/tuned/mmoe/seed0/metrics.json").stat().st_mtime_ns
    Path("work/group1/tuned/single_task/seed0/metrics.json").unlink()
    runs[runs["method"] == "mmoe"].to_csv("out/group1.csv", index=False)
    assert reproduce("sample=true").returncode == 0
    assert Path("work/group1/tuned/mmoe/seed0/metrics.json").stat().st_mtime_ns == before
    assert Path("work/group1/tuned/single_task/seed0/metrics.json").exists()
    again = pd.read_csv("out/group1.csv")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), runs.drop(columns="seconds"))

    # The tables and the tuned configurations suffice to go on without the run folders.
    Path("work").rename("before")
    assert reproduce("sample=true").returncode == 0
    assert not Path("work/group1/tuned").exists()
    pd.testing.assert_frame_equal(pd.read_csv("out/group1.csv"), again)

    # More seeds add to those before.
    assert reproduce("sample=true", "seeds=6", "methods=mmoe").returncode == 0
    more = pd.read_csv("out/group1.csv")
    assert more.groupby("method").size().to_dict() == {"mmoe": 6, "single_task": 3}
    pd.testing.assert_frame_equal(more[more["seed"] < 3].reset_index(drop=True), again)
    assert f"| single_task | - | {paired.mean():+.4f} ± {half:.4f}" in Path("out/group1.md").read_text()

    # Matched budgets give nearly the same number of parameters.
    methods = "methods=mmoe,single_task,tensor_factorization"
    assert reproduce("sample=true", "budget=matched", methods).returncode == 0
    counts = pd.read_csv("out/group1_matched.csv").groupby("method")["parameters"].first()
    assert counts["single_task"] == pytest.approx(counts["mmoe"], rel=0.05)
    assert counts["tensor_factorization"] == pytest.approx(counts["mmoe"], rel=0.05)
    retrained = {path.name for path in Path("work/group1/matched").iterdir()}
    assert retrained == {"single_task", "tensor_factorization"}  # mmoe keeps its tuned width

    # Other settings need another folder; nothing is overwritten.
    text = Path("out/group1.md").read_text()
    done = reproduce("sample=true", "trials=2")
    assert done.returncode == 2
    error = "error: out: holds results of other settings: trials; give another folder=... and out=..."
    assert done.stderr.splitlines()[-1] == error
    assert Path("out/group1.md").read_text() == text


@pytest.mark.slow
def test_runs_one_by_one():
    done = reproduce("sample=true", "chunk=1", "seeds=2", "methods=single_task")
    assert done.returncode == 0, done.stderr
    assert "single_task: 1 run from seed 1\n" in done.stdout
    runs = pd.read_csv("out/group1.csv")
    assert list(runs["seed"]) == [0, 1]
    assert runs["test_income_auroc"].nunique() == 2
    assert "The seconds are medians for a whole run." in Path("out/group1.md").read_text()


@pytest.mark.slow
def test_without_a_search():
    """Each method has the widths of its configuration, and all trainings have the overrides."""
    plain = ["sample=true", "chunk=1", "seeds=2", "trials=0", "inputs=unscaled", "activation=relu"]
    done = reproduce(*plain)
    assert done.returncode == 0, done.stderr
    configs = {
        method: OmegaConf.load(f"work/group1/tuned/{method}/seed1/config.yaml")
        for method in ("mmoe", "single_task")
    }
    assert configs["mmoe"].model.expert_units == [16]
    assert configs["single_task"].model.units == [64, 8]
    for config in configs.values():
        assert config.inputs.numeric._target_ == "mmoe.models.encoders.Unscaled"
        assert config.model.activation == "relu"
    text = Path("out/group1.md").read_text()
    assert "The methods are not tuned" in text
    assert not Path("out/configs").exists()
    assert "Overrides of all trainings: " in text
    assert "`activation=relu`, `inputs=unscaled`." in text

    done = reproduce(*plain, "budget=matched")
    assert done.returncode == 2
    assert done.stderr == "error: budget=matched: sets the widths of tuned methods, so trials must not be 0\n"


@pytest.mark.parametrize("far", [[], [0.84]])
def test_a_run_far_below_the_others_stands_at_the_edge_of_the_figure(
    far: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(processes.SCRIPTS))
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: drawn.append(figure))
    near = [0.951, 0.9512, 0.9514, 0.9515, 0.9516]
    runs = [("mmoe", value) for value in near] + [("ple", value) for value in near + far]
    frame = pd.DataFrame(runs, columns=["method", "auroc"])
    import_module("reproduce_census").draw_runs(frame, "auroc", "AUROC", Path("runs.png"))
    (axes,) = drawn[0].axes
    assert axes.get_xlim()[0] > 0.95
    assert [text.get_text() for text in axes.texts] == [f"{run:.4f}" for run in far]
    points = {mark: [line for line in axes.lines if line.get_marker() == mark] for mark in "o<"}
    assert [len(line.get_xdata()) for line in points["o"]] == [5, 5]
    assert sum(len(line.get_xdata()) for line in points["<"]) == len(far)
    assert ("triangle" in axes.get_xlabel()) == bool(far)


def test_the_sample_needs_an_option():
    done = reproduce()
    assert done.returncode == 2
    assert "error: data.source=official: " in done.stderr
    assert [path.name for path in Path("out").iterdir()] == ["group1_settings.json"]


def test_results_of_unknown_settings_are_not_used(script: Callable[..., Result]):
    Path("out").mkdir()
    Path("out/group1.csv").write_text("method,seed\n")
    done = script("reproduce_census", *QUICK, "sample=true")
    rule = "has results of unknown settings; give another out=..., or remove it"
    assert (done.code, done.err) == (2, f"error: out/group1.csv: {rule}\n")
    assert Path("out/group1.csv").read_text() == "method,seed\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("group=3", "error: group=3: must be 1 or 2\n"),
        ("budget=big", "error: budget=big: must be tuned or matched\n"),
        ("sample=yes", "error: sample=yes: must be true or false\n"),
        ("seeds=1", "error: seeds=1: must be an integer of at least 2\n"),
        ("seeds=4", "error: seeds=4: must be a multiple of chunk=3\n"),
        ("trials=x", "error: trials=x: must be an integer of at least 0\n"),
        ("methods=mlp", "error: methods=mlp: must be some of single_task"),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], argument: str, message: str):
    result = script("reproduce_census", *QUICK, argument)
    assert result.code == 2
    assert result.err.startswith(message)
