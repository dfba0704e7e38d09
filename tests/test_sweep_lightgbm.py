"""LightGBM beside the runs of a sweep, and the inputs that it is trained on."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command, assert_legible
from omegaconf import OmegaConf
from rich.console import Console
from sklearn.metrics import roc_auc_score

from mmoe import load
from mmoe.analysis import lightgbm_training
from mmoe.analysis.lightgbm_training import level_inputs, lightgbm_inputs
from mmoe.analysis.sweep_lightgbm import FILE
from mmoe.analysis.sweep_results import plot_sweep
from mmoe.data.batch import Batch, take
from mmoe.data.columns import Categorical
from mmoe.data.schema import Schema
from mmoe.data.splits import Dataset
from mmoe.run import Run
from mmoe.tasks import Regression
from mmoe.training import stored_config


def test_levels_are_ranked_by_known_weighted_labels():
    tags = Categorical("tags", ("x", "y"), is_multi=True, separator="|", max_values=2)
    schema = Schema((Categorical("city", ("a", "b", "c")), tags), (), (Regression("spend", name="spend"),))
    rows = Batch(
        torch.tensor([[0, 3, 4], [1, 4, 5], [2, 5, 5], [2, 3, 5]]),
        torch.zeros(4, 0),
        torch.tensor([[5.0], [-3.0], [9.0], [-9.0]]),
        torch.tensor([[True], [True], [True], [False]]),
        torch.tensor([[1.0], [1.0], [3.0], [1.0]]),
    )
    data = Dataset(schema, {"train": rows}, {})
    ranks = lightgbm_inputs(data, 0, "train")
    assert np.argsort(ranks[:3, 0]).tolist() == [1, 0, 2]  # the unknown label does not count
    assert ranks[:, 1:].tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]
    # With the prior, a level without rows has the weighted mean label, 5.8, which is above 5 and -3.
    unseen = schema.num_codes
    test = rows._replace(levels=torch.tensor([[0, 3, 4], [1, 3, 4], [2, 3, 4], [unseen, 3, 4]]))
    data.splits["test"] = test
    assert np.argsort(lightgbm_inputs(data, 0, "test", prior=10)[:, 0]).tolist() == [1, 0, 3, 2]
    assert np.argsort(lightgbm_inputs(data, 0, "test")[:, 0]).tolist() == [3, 1, 0, 2]
    # With prior=None, levels are codes.
    assert lightgbm_inputs(data, 0, "test", prior=None)[:, 0].tolist() == [0, 1, 2, -1]
    assert level_inputs(schema) == [0]


KINDS = """
_target_: mmoe.data.table_data.TableData
train: rows.csv
validation: {fraction: 0.2}
test: {fraction: 0.2}
columns: {age: numeric, group: categorical}
tasks:
  click: {column: clicked}
  spend: {column: spend, kind: regression, where: clicked}
  genre: {column: genre, kind: multiclass}
  visits: {column: visits, kind: count}
main_task: click
"""
QUICK = ["data=kinds", "logger=none", "figures=false", "card=false", "trainer.max_epochs=1"]


def rows(count: int) -> pd.DataFrame:
    """Rows in which `age` and `group` say something about the labels of four tasks."""
    random = np.random.default_rng(0)
    age, group = random.uniform(20, 80, count), random.choice(["a", "b", "c"], count)
    score = (age - 50) / 15 + (group == "a")
    clicked = score + random.logistic(size=count) > 0
    genre = np.where(score > 1, "old", np.where(score > -0.5, "middle", "young")).astype(object)
    genre[random.random(count) < 0.2] = None
    spend = np.where(clicked, 500 + 80 * score + random.normal(0, 20, count), np.nan)
    visits = random.poisson(np.exp(score / 2))
    columns = {"clicked": clicked.astype(int), "spend": spend, "genre": genre, "visits": visits}
    return pd.DataFrame({"age": age, "group": group, **columns})


@pytest.fixture
def sweep(train: Command) -> str:
    """Two methods with two seeds each, on tasks of all kinds."""
    Path("conf/data").mkdir(parents=True)
    Path("conf/data/kinds.yaml").write_text(KINDS)
    rows(1500).to_csv("rows.csv", index=False)
    methods = ["model=mmoe,shared_bottom", "seed=0,1", "hydra.sweep.dir=sweep"]
    done = train("--config-dir", "conf", "-m", *QUICK, *methods)
    assert done.code == 0, done.err
    return "sweep"


def test_lightgbm_is_a_line_beside_the_methods(sweep: str, command: Callable[[str], Command]):
    done = command("compare")(sweep, "--lightgbm")
    assert done.code == 0, done.err
    table = pd.read_csv("sweep/compare.csv").set_index("model")
    assert {*table.index[:2]} == {"MMoE", "SharedBottom"}
    assert table.index[2] == "LightGBM"
    assert table.loc["LightGBM", "seeds"] == 2
    assert np.isnan(table.loc["LightGBM", "parameters"])
    assert "LightGBM" in done.out
    card = Path("sweep/compare.md").read_text()
    assert "- `3`: `model=SharedBottom`, `seed=1`\n" in card  # a run has its settings
    assert "LightGBM has one model for each task." in card
    for task in ("click", "spend", "genre", "visits"):  # four tasks side by side are too wide for a page
        (header,) = re.findall(rf"## `{task}`\n\n(.*)\n", card)
        names = [cell.replace("`", "").split() for cell in header.strip("| ").split(" | ")]
        assert names[:3] == [["model"], ["seeds"], ["parameters"]]
        assert [name[:2] for name in names[3:]] == [["val", task], ["test", task]]
    for axes in plot_sweep("sweep").axes:  # in the order of the table
        assert [tick.get_text() for tick in axes.get_xticklabels()] == table.index.tolist()

    # It has seen the training rows alone, and the test metrics are those of its predictions.
    found = json.loads(Path("sweep", FILE).read_text())["runs"]
    assert [one["seed"] for one in found] == [0, 1]
    means = {task: np.mean([one["test"][task]["auroc"] for one in found]) for task in ("click", "genre")}
    assert table.loc["LightGBM", "test/click/auroc"] == pytest.approx(means["click"])
    assert all(mean > 0.7 for mean in means.values())
    test = load("sweep/0").rows("test")
    spend = test.labels[:, 1][test.known[:, 1]].numpy()
    assert all(one["test"]["spend"]["mse"] < spend.var() for one in found)
    assert all(one["test"]["visits"]["poisson_deviance"] > 0 for one in found)

    # Later comparisons show it again, and train no seed twice.
    before = Path("sweep", FILE).read_text()
    for flags in ([], ["--lightgbm"]):
        done = command("compare")(sweep, *flags)
        assert "LightGBM" in done.out
        assert Path("sweep", FILE).read_text() == before


def test_lightgbm_is_a_horizontal_line_beside_an_option(
    train: Command,
    command: Callable[[str], Command],
    monkeypatch: pytest.MonkeyPatch,
):
    Path("conf/data").mkdir(parents=True)
    Path("conf/data/kinds.yaml").write_text(KINDS)
    rows(600).to_csv("rows.csv", index=False)
    options = ["model.num_experts=2,3", "model.gate_temperature=1.0,5.0", "hydra.sweep.dir=sweep"]
    assert train("--config-dir", "conf", "-m", *QUICK, *options).code == 0
    done = command("compare")("sweep", "--lightgbm")
    assert done.code == 0, done.err
    assert "Best on the validation rows first, LightGBM last; your own rows" in done.out
    table = pd.read_csv("sweep/compare.csv")
    assert table["model"].tolist() == ["MMoE"] * 4 + ["LightGBM"]
    assert table.loc[4, ["model.gate_temperature", "model.num_experts"]].tolist() == ["-", "-"]
    figure = plot_sweep("sweep", "model.num_experts")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["gate temperature 1.0", "gate temperature 5.0", "LightGBM"]
    assert_legible(figure)
    card = Path("sweep/compare.md").read_text()
    assert "Each marker is one run. The dashed line is LightGBM" in card
    assert "The intervals do not cover" not in card
    monkeypatch.setattr("mmoe.compare.open_console", lambda: Console(width=80))
    printed = command("compare")("sweep").out
    for task in ("click", "spend", "genre", "visits"):  # a table for each task
        assert printed.count(f"\n{task} ") == 1
    assert all(f"{value:.4f}" in printed for value in table["test/click/auroc"])
    for axes, task in zip(figure.axes, ("click", "spend", "genre", "visits"), strict=True):
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "3"]
        name = next(name for name in table if name.startswith(f"test/{task}/"))
        assert list(axes.lines[-1].get_ydata()) == [pytest.approx(table.loc[4, name])] * 2


def test_its_metrics_are_those_of_scikit_learn(sweep: str, command: Callable[[str], Command]):
    from mmoe.analysis.lightgbm_training import train_lightgbm
    from mmoe.analysis.sweep_lightgbm import MAX_ROUNDS, PARAMETERS, PATIENCE, PRIOR

    assert command("compare")(sweep, "--lightgbm").code == 0
    run = load("sweep/0")
    data = Dataset(run.schema, {split: run.rows(split) for split in ("train", "val", "test")}, {})
    model = train_lightgbm(data, 0, PARAMETERS, 1, MAX_ROUNDS, PATIENCE, PRIOR)
    predicted = model.predict(lightgbm_inputs(data, 0, "test", PRIOR))
    expected = roc_auc_score(run.rows("test").labels[:, 0], predicted)
    (found,) = [one for one in json.loads(Path("sweep", FILE).read_text())["runs"] if one["seed"] == 1]
    assert found["test"]["click"]["auroc"] == pytest.approx(expected, abs=1e-6)


def test_runs_on_other_rows_are_refused(sweep: str, command: Callable[[str], Command]):
    content = OmegaConf.create(stored_config.read_plain_config(Path("sweep/3")))
    content.data.split_seed = 1
    stored_config.write_config(Path("sweep/3"), stored_config.to_yaml(content))
    done = command("compare")(sweep, "--lightgbm")
    assert done.code == 2
    assert done.err == "error: --lightgbm: data.split_seed of sweep/3 must be that of sweep/0\n"
    assert not Path("sweep", FILE).exists()


def test_a_kind_without_an_objective_is_refused(
    sweep: str, command: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(lightgbm_training.OBJECTIVES, "count")
    done = command("compare")(sweep, "--lightgbm")
    assert done.code == 2
    assert done.err == "error: --lightgbm: task visits has the kind count, which has no objective\n"


def test_without_lightgbm_one_line_names_the_extra(
    sweep: str, command: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("compare")(sweep, "--lightgbm")
    assert done.code == 2
    assert done.err == "error: --lightgbm: needs pip install 'mmoe[lightgbm]'\n"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"rows": {}}', '{"rows": 1, "runs": 2}', '{"rows": 1, "runs": [{"seed": 0}]}']
)
def test_a_damaged_file_of_results(sweep: str, command: Callable[[str], Command], content: str):
    Path("sweep", FILE).write_text(content)
    done = command("compare")(sweep)
    assert done.code == 2
    assert done.err == f"error: sweep/{FILE}: is damaged; delete it, and compare with --lightgbm again\n"


def test_results_of_other_rows_are_ignored(sweep: str, command: Callable[[str], Command]):
    one = {"seed": 0, "val": {}, "test": {}}
    Path("sweep", FILE).write_text(json.dumps({"rows": {"files": {}}, "runs": [one]}))
    done = command("compare")(sweep)
    assert done.code == 0
    assert "LightGBM" not in done.out


def test_a_task_needs_known_labels_in_each_split(train: Command, command: Callable[[str], Command]):
    frame = rows(1500)
    frame["part"] = ["test", "val", *["train"] * 8] * 150
    frame.loc[frame["part"] == "test", "genre"] = None
    frame.to_csv("rows.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    text = KINDS.replace("test: {fraction: 0.2}", "test: {column: part, value: test}")
    Path("conf/data/kinds.yaml").write_text(text)
    assert train("--config-dir", "conf", *QUICK, "hydra.run.dir=sweep/0").code == 0
    done = command("compare")("sweep", "--lightgbm")
    assert done.code == 2
    assert done.err.endswith("error: --lightgbm: task genre must have a known label in the test rows\n")


def test_rows_in_shards_must_fit_into_memory(
    sweep: str, command: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch
):
    small = Run.rows
    monkeypatch.setattr(Run, "rows", lambda run, split: take(small(run, split), torch.arange(100)))
    done = command("compare")(sweep, "--lightgbm")
    assert done.code == 2
    assert done.err.startswith("error: --lightgbm: the 960 train rows must be at most 1,048,576, ")


def test_rows_that_are_drawn_anew_are_refused(train: Command, command: Callable[[str], Command]):
    small = ["data.rows=256", "data.eval_rows=128", "trainer.max_epochs=1", "logger=none"]
    assert train("experiment=synthetic", *small, "hydra.run.dir=sweep/0").code == 0
    done = command("compare")("sweep", "--lightgbm")
    assert done.code == 2
    assert done.err == "error: --lightgbm: the rows of sweep/0 must be from files\n"
