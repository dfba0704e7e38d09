"""Tables of a run folder whose gates are known, and the figures made of them."""

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Result, assert_legible, trained
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import binary_auroc

import mmoe
from mmoe import analysis, load
from mmoe.analysis.drawing import fit_name, panels
from mmoe.analysis.subgroups import subgroups
from mmoe.errors import UserError
from mmoe.models.masking import masked_expert
from mmoe.run import Run, compute_outputs
from mmoe.training import checkpoints, run_folder, stored_config

Train = Callable[..., Result]
SHARE = {"Female": 0.25, "Male": 0.6}  # income's weight of expert 1; marital has equal weights


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, smoke_run: Path) -> Path:
    """A run with two experts, and gates that depend on nothing but sex."""
    folder = tmp_path_factory.mktemp("known") / "run"
    shutil.copytree(smoke_run, folder)
    text = (folder / "config.yaml").read_text()
    text = text.replace("num_experts: 8", "num_experts: 2")
    (folder / "config.yaml").write_text(text.replace("gate_temperature: 10.0", "gate_temperature: 1.0"))
    schema = load(folder).schema
    path = folder / "checkpoints/best.ckpt"
    checkpoint = checkpoints.load(path)
    state, name = checkpoint["state_dict"], "objective.network.model."
    weight, bias = state[f"{name}weight"], state[f"{name}bias"]
    hidden = weight[:, :32]  # two of the trained experts
    gates = torch.zeros(len(weight), 4)
    offset = 0
    for column in schema.categorical:
        if column.name == "sex":
            for level, share in SHARE.items():
                gates[offset + column.levels.index(level), 1] = math.log(share / (1 - share))
        offset += len(column.levels)
    state[f"{name}weight"] = torch.cat([hidden, gates], 1)
    state[f"{name}bias"] = torch.cat([bias[:32], torch.zeros(4)])
    checkpoints.save(path, checkpoint)
    return folder


def test_scored_rows_are_those_of_the_run(known: Path, smoke_run: Path):
    rows = load(smoke_run).scored()
    predictions = pd.read_parquet(smoke_run / "predictions.parquet")
    np.testing.assert_allclose(rows["income_probability"], predictions["income_probability"], atol=1e-12)
    assert rows["marital_label"].tolist() == predictions["marital_label"].tolist()
    assert set(rows["sex"]) == {"Female", "Male"}
    assert len(load(known).scored("val")) == 5000
    with pytest.raises(ValueError, match="split=half: must be one of train, val, test"):
        load(known).scored("half")


def test_gate_weights_by_hand(known: Path):
    female = (load(known).scored()["sex"] == "Female").mean()
    expected = female * SHARE["Female"] + (1 - female) * SHARE["Male"]
    table = analysis.gate_weights(known)
    assert table.loc["income"].tolist() == pytest.approx([1 - expected, expected])
    assert table.loc["marital"].tolist() == pytest.approx([0.5, 0.5])


def test_gate_weights_of_subgroups(known: Path):
    table = analysis.gate_weights_by(known, "sex")
    assert {sex: table.loc[sex, ("income", 1)] for sex in SHARE} == pytest.approx(SHARE)
    assert table["rows"].sum().item() == 5000
    # A column that is no input comes from the file; every row has its own.
    education = analysis.gate_weights_by(known, "education")
    assert education["rows"].sum().item() == 5000
    weighted = (education["income", 1] * education["rows"].squeeze()).sum() / 5000
    assert weighted == pytest.approx(analysis.gate_weights(known).loc["income", 1])
    with pytest.raises(ValueError, match="column=shoe_size: must be a column of the run's rows, such as"):
        analysis.gate_weights_by(known, "shoe_size")


def test_a_raw_column_of_a_run_with_own_classes(known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rows.py").write_text("from mmoe.data.census import CensusData")
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(known, "run")
    text = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(text.replace("mmoe.data.census.CensusData", "my_rows.CensusData"))
    with pytest.raises(UserError, match="my_rows"):
        analysis.gate_weights_by("run", "education")
    table = analysis.gate_weights_by(load("run", trust=["my_rows"]), "education")
    assert table.equals(analysis.gate_weights_by(known, "education"))


def test_raw_columns_are_in_the_order_of_the_rows(known: Path):
    rows = load(known).scored()
    for name in ("sex", "age"):
        assert load(known).data.raw_column(name, "test").tolist() == rows[name].tolist()


def test_bands_and_levels():
    ages = pd.Series([0.0, 10, 20, 30, 40, 50, 60, 70])
    assert subgroups(ages, bands=[0, 20, 70]).value_counts().to_dict() == {"21 to 70": 5, "0 to 20": 3}
    assert subgroups(ages, bands=4).value_counts().tolist() == [2, 2, 2, 2]
    levels = pd.Series(list("aaabbcde"))
    assert subgroups(levels, max_levels=2).value_counts().to_dict() == {"a": 3, "(other)": 3, "b": 2}
    assert subgroups(pd.Series([94.0, 95, 94])).astype(str).tolist() == ["94", "95", "94"]
    days = pd.Series([20240101.0, 20240102, 20240101])
    assert subgroups(days).astype(str).tolist() == ["20240101", "20240102", "20240101"]
    money = pd.Series([0.0] * 90 + list(range(1, 11)))
    counts = subgroups(money, bands=3).value_counts(sort=False)
    assert counts.to_dict() == {"0": 90, "1 to 5": 5, "6 to 10": 5}
    assert list(subgroups(ages, bands=2).cat.categories) == ["0 to 30", "40 to 70"]
    shares = pd.Series([0.123456, 0.2, 0.25, 0.3, 0.345678, 0.4, 0.5, 0.6])
    assert list(subgroups(shares, bands=2).cat.categories) == ["0.1235 to 0.3", "0.3457 to 0.6"]
    assert list(subgroups(shares, bands=[0, 0.7, 0.8]).cat.categories) == ["0 to 0.7", "0.7 to 0.8"]
    assert list(subgroups(ages, bands=[0, 20, 21, 70]).cat.categories) == ["0 to 20", "21", "22 to 70"]
    large = pd.Series([0.5, 123456.25, 20240101])
    edges = ["0 to 0.5", "0.5 to 123456.25", "123456.25 to 20240101"]
    assert list(subgroups(large, bands=[0, 0.5, 123456.25, 20240101]).cat.categories) == edges
    assert list(subgroups(large, bands=3).cat.categories) == ["0.5", "123456.25", "20240101"]
    repeated = pd.Series([1.0] * 3 + [2] * 3 + [3] * 3 + list(range(4, 12)))
    assert subgroups(repeated, bands=10).value_counts(sort=False).sum() == len(repeated)
    close = pd.Series(1e6 + 0.1 * np.arange(10))
    assert subgroups(close, bands=5).value_counts().tolist() == [2] * 5
    torque = pd.Series(np.float32([8.1, 31.7, 42.6, 50.2]).astype(np.float64))
    assert list(subgroups(torque, bands=[8.1, 42.6, 51.0]).cat.categories) == ["8.1 to 42.6", "42.6 to 51"]
    assert subgroups(pd.Series(["a", None])).tolist() == ["a", "(missing or unseen)"]
    assert subgroups(pd.Series([1.0, np.nan, 0])).tolist() == ["1", "(missing)", "0"]
    some = pd.concat([ages, pd.Series([np.nan])], ignore_index=True)
    assert subgroups(some, bands=4).value_counts(sort=False).tolist() == [2, 2, 2, 2, 1]
    with pytest.raises(ValueError, match="bands=0: must be an integer of at least 1"):
        subgroups(ages, bands=0)
    with pytest.raises(ValueError, match=r"bands=\[0, 60\]: must reach from 0 to 70, as the values do"):
        subgroups(ages, bands=[0, 60])


def test_subgroups_of_dates_are_named_by_dates(tmp_path: Path):
    days = pd.date_range("2025-01-01", periods=400, freq="7h")
    table = mmoe.Table(pd.DataFrame({"day": days, "click": np.arange(400) % 2}), tasks=["click"])
    run = mmoe.fit(table, tmp_path / "run", "trainer.max_epochs=1", "figures=false", "logger=none")
    names = list(analysis.gate_weights_by(run, "day", bands=2).index)
    assert all(re.fullmatch(r"2025-\d\d-\d\d to 2025-\d\d-\d\d", name) for name in names)
    assert names[0].startswith("2025-01-0")
    hours = subgroups(pd.Series([20000.1, 20000.2]), are_dates=True)
    assert list(hours.cat.categories) == ["2024-10-04 02:24", "2024-10-04 04:48"]
    seconds = subgroups(pd.Series([20000.1, 20000.1 + 5 / 86400]), are_dates=True)
    assert list(seconds.cat.categories) == ["2024-10-04 02:24:00", "2024-10-04 02:24:05"]
    same_second = subgroups(pd.Series([20000.1, 20000.1 + 1e-6]), are_dates=True)
    assert list(same_second.cat.categories) == ["20000.1", "20000.100001"]


def test_similarity_by_hand(known: Path):
    female = (load(known).scored()["sex"] == "Female").mean()
    cosine = {sex: (1 / math.sqrt(2)) / math.hypot(share, 1 - share) for sex, share in SHARE.items()}
    expected = female * cosine["Female"] + (1 - female) * cosine["Male"]
    assert analysis.gate_similarity(known).loc["income", "marital"] == pytest.approx(expected)


@pytest.mark.parametrize("model", ["dselect_k", "adatt", "stem"])
def test_an_ablation_masks_the_gates_of_every_method(train: Train, model: str):
    quick = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "logger=none", "hydra.run.dir=run"]
    assert train("experiment=smoke", f"model={model}", *quick).code == 0
    run = load("run")
    table = analysis.expert_ablation(run)
    assert len(table) == run.num_experts == len(analysis.gate_weights(run).columns)
    assert (table.abs() > 0).any(axis=None)
    network, rows = run.network(), run.rows()
    with masked_expert(network, 1):
        gates = compute_outputs(network, rows).gates
    kept = run.outputs().gates.clone()
    kept[:, :, 1] = 0
    torch.testing.assert_close(gates, kept / kept.sum(-1, keepdim=True).clamp(min=1e-30))


def test_an_ablation_is_the_network_without_the_expert(known: Path):
    table = analysis.expert_ablation(known)
    network, rows = load(known).network(), load(known).rows()
    with torch.no_grad():
        network.model.bias[32:] = torch.tensor([0.0, -1e9, 0.0, -1e9])  # expert 0 alone
        logits = network(rows.levels, rows.numbers).logits
    for t, task in enumerate(("income", "marital")):
        whole = binary_auroc(analysis_probability(known, task), rows.labels[:, t].int())
        left = binary_auroc(logits[:, t].double().sigmoid(), rows.labels[:, t].int())
        assert table.loc[1, task] == pytest.approx((whole - left).item(), abs=1e-6)  # torchmetrics: float32


def test_dead_units(smoke_run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(smoke_run, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("activation: gelu", "activation: relu"))
    run = load(folder)
    model, codes = run.network().model, run.schema.code_offsets
    sex = [column.name for column in run.schema.categorical].index("sex")
    female = codes[sex] + run.schema.categorical[sex].levels.index("Female")
    with torch.no_grad():
        model.weight[:, :128] = 0
        model.bias[:128] = 1
        model.bias[:5] = -1
        model.weight[female, 4] = 2  # this unit is 0 in some rows only
        model.towers[0].weight.zero_()
        model.towers[0].bias[0], model.towers[0].bias[1] = 1, -1
    assert analysis.dead_units(run).to_dict("index") == {
        "model.experts.0": {"units": 128, "dead": 4}, "model.towers.1": {"units": 16, "dead": 8},
    }  # fmt: skip
    (axes,) = analysis.plot_dead_units(run).axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 4 / 128]
    assert [text.get_text() for text in axes.texts] == ["8 of 16", "4 of 128"]


def test_dead_units_need_relus_of_one_network(smoke_run: Path, train: Train):
    with pytest.raises(UserError, match="its network has no ReLUs; they come with activation=relu"):
        analysis.dead_units(smoke_run)
    given = ["experiment=smoke", "model=ensemble", "activation=relu", "trainer.max_epochs=1"]
    assert train(*given, "hydra.run.dir=run").code == 0
    with pytest.raises(UserError, match="its model is an ensemble, whose units cannot be counted"):
        analysis.dead_units("run")


def analysis_probability(folder: Path, task: str) -> torch.Tensor:
    return torch.tensor(load(folder).scored()[f"{task}_probability"].to_numpy())


def test_curves(smoke_run: Path):
    metrics = json.loads((smoke_run / "metrics.json").read_text())
    for task, table in analysis.roc(smoke_run).items():
        area = np.trapezoid(table["true_positive_rate"], table["false_positive_rate"])
        assert area == pytest.approx(metrics["test"][task]["auroc"])
    for table in analysis.precision_recall(smoke_run).values():
        assert table["recall"].iloc[0] == 1
        assert table["recall"].iloc[-1] == 0
    predictions = pd.read_parquet(smoke_run / "predictions.parquet")
    table = analysis.calibration(smoke_run, bins=4)["income"]
    assert ((table["low"] <= table["observed"]) & (table["observed"] <= table["high"])).all()
    assert table["rows"].tolist() == [1250] * 4
    lowest = predictions.nsmallest(1250, "income_probability", keep="first")
    assert table.loc[0, "predicted"] == pytest.approx(lowest["income_probability"].mean())
    assert (table["observed"] * table["rows"]).sum() == predictions["income_label"].sum()
    assert analysis.training_curves(smoke_run)["epoch"].tolist() == [1, 2, 3, 4]


def test_equal_probabilities_are_one_group_of_the_calibration(smoke_run: Path):
    run = Run(smoke_run)
    run.predictions = run.predictions.assign(income_probability=0.1)
    table = analysis.calibration(run)["income"]
    assert table["rows"].tolist() == [len(run.predictions)]
    assert table["observed"].tolist() == [run.predictions["income_label"].mean()]
    assert_drawn(analysis.plot_calibration(run))


def test_every_figure_is_drawn(known: Path):
    for plot in ("gate_weights", "gate_distributions", "gate_similarity", "expert_ablation"):
        assert_drawn(getattr(analysis, f"plot_{plot}")(known))
    assert_drawn(analysis.plot_gate_weights_by(known, "age"))
    axes = analysis.plot_gate_weights(known).axes[0]
    share = analysis.gate_weights(known).loc["income", 1]
    assert f"{share:.2f}" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (4, 2), (5, 3), (7, 3)])
def test_panels_fill_their_rows(count: int, columns: int):
    figure, axes = panels(count, width=2, height=2)
    figure.draw_without_rendering()
    assert len(axes) == count
    assert len({round(one.get_position().x0, 2) for one in axes}) == columns


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("income", "income"),
        ("", ""),
        ("Will_buy_next_year", "Will_buy_next_year"),
        ("rare event of the customer", "rare event of the\ncustomer"),
        ("bought_in_the_next_twelve_months", "bought_in_the_next_\ntwelve_months"),
        ("x" * 45, f"{'x' * 20}\n{'x' * 20}\n{'x' * 5}"),
        ("x" * 90 + "y" * 5, f"{'x' * 20}\n{'x' * 17}...\n{'x' * 10}{'y' * 5}"),
        ("from $5 to $6", r"from \$5 to \$6"),
    ],
)
def test_names_fit_into_figures(name: str, expected: str):
    assert fit_name(name) == expected


def test_a_long_name_on_one_line_keeps_its_ends():
    assert fit_name("state_of_the_order_last_year", 20, 1) == "state_of...ast_year"
    assert fit_name("state_of_the_order", 20, 1) == "state_of_the_order"


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_long_names_leave_room_for_the_figures(
    num_tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    names = ["rare_event_of_the_customer_in_the_next_twelve_months", "bought_something_in_the_shop_or_online"]
    labels = {name: (x + rng.normal(size=300) > 0.3).astype(int) for name in names[:num_tasks]}
    prices = rng.choice([r"from $5 to $6", r"$\frac above $7", "none"], 300)
    tags = rng.choice(["a|b", "b|c", "a", None], 300)
    frame = pd.DataFrame({"x": x, "price": prices, "tags": tags, **labels})
    kinds = {"x": "numeric", "tags": {"kind": "multi", "separator": "|"}, "price": "categorical"}
    table = mmoe.Table(frame, [*labels], columns=kinds)
    given = ["trainer.max_epochs=1", "balance.measure_every=2"]
    run = mmoe.fit(table, "run", *given)
    plots = [analysis.plot_roc, analysis.plot_precision_recall, analysis.plot_calibration]
    plots += [analysis.plot_gate_weights, analysis.plot_gate_distributions, analysis.plot_gate_similarity]
    plots += [analysis.plot_training_curves, analysis.plot_expert_ablation]
    plots += [partial(analysis.plot_gate_weights_by, column=column) for column in ("price", "tags")]
    plots += [analysis.plot_balance] if num_tasks > 1 else []
    for plot in plots:
        assert_legible(plot(run))
    levels = set(analysis.gate_weights_by(run, "tags").index)
    assert levels == {"a, b", "b, c", "a", "(missing or unseen)"}


def test_figures_fit_their_values(smoke_run: Path, tmp_path: Path):
    figure = analysis.plot_gate_weights(smoke_run)
    weights = analysis.gate_weights(smoke_run).to_numpy()
    assert figure.axes[0].images[0].norm.vmax == max(weights.max(), 2 / 8)  # equal weights are not black
    panels = analysis.plot_calibration(smoke_run).axes
    for axes, (task, table) in zip(panels, analysis.calibration(smoke_run).items(), strict=True):
        assert axes.get_title() == task
        largest = table[["predicted", "observed"]].to_numpy().max()
        assert axes.get_xlim()[1] == pytest.approx(1.05 * largest, rel=0.1)
    curves = analysis.plot_precision_recall(smoke_run).axes[0].lines
    labels = load(smoke_run).predictions["income_label"]
    assert curves[1].get_ydata()[0] == pytest.approx(labels.mean())  # the baseline
    folder = tmp_path / "run"
    shutil.copytree(smoke_run, folder)
    history = pd.read_csv(folder / "history.csv")
    history.assign(**{"val/marital/auroc": np.nan}).to_csv(folder / "history.csv", index=False)
    titles = [axes.get_title() for axes in analysis.plot_training_curves(folder).axes]
    assert titles == ["income", "gates"]  # no empty panel for marital


def assert_drawn(figure: Figure) -> None:
    figure.canvas.draw()
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel()


def test_a_run_without_gates(train: Train):
    assert train("experiment=smoke", "model=single_task", "figures=true", "trainer.max_epochs=1").code == 0
    (folder,) = Path("runs").glob("*/*")
    names = sorted(path.stem for path in (folder / "figures").iterdir())
    assert names == ["calibration", "precision_recall", "roc", "training_curves"]
    for call in (analysis.gate_weights, analysis.plot_gate_distributions, analysis.gate_similarity):
        with pytest.raises(ValueError, match=r"its model \(SingleTask\) has no gates"):
            call(folder)
    with pytest.raises(ValueError, match="must have gates over 2 experts or more, has 0"):
        analysis.expert_ablation(folder)


def test_a_run_that_has_not_ended(known: Path, tmp_path: Path):
    shutil.copytree(known, tmp_path / "run")
    (tmp_path / "run/predictions.parquet").unlink()
    with pytest.raises(ValueError, match=r"predictions\.parquet: missing; is .*run the folder of a run that"):
        analysis.roc(tmp_path / "run")


@pytest.mark.parametrize(
    "overrides", [["model=ple"], ["replicas=2"], ["experiment=synthetic", "data.rows=256"]]
)
def test_figures_of_every_kind_of_run(train: Train, overrides: list[str]):
    first = [] if overrides[0].startswith("experiment") else ["experiment=smoke"]
    result = train(*first, *overrides, "figures=true", "trainer.max_epochs=1", "hydra.run.dir=run")
    assert result.code == 0, result.err
    names = {path.name for path in Path("run/figures").iterdir()}
    assert "training_curves.png" in names
    assert ("gate_weights.png" in names) == ("replicas=2" not in overrides)
    assert ("roc.png" in names) == (overrides == ["model=ple"])
    shown = EventAccumulator("run").Reload().Tags()["images"]
    assert sorted(shown) == sorted(name.removesuffix(".png") for name in names)
    if overrides == ["model=ple"]:
        assert len(analysis.expert_ablation("run")) == 8
    if overrides == ["replicas=2"]:
        assert analysis.gate_weights("run", replica=1).shape == (2, 8)
        with pytest.raises(ValueError, match="replica: must be 0 to 1, because the run has 2 replicas"):
            analysis.roc("run")


@pytest.fixture(scope="module")
def trained_sweep(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """Two numbers of experts with two seeds each, one run that did not finish, and one with replicas."""
    folder = tmp_path_factory.mktemp("trained") / "sweep"
    quick = ["experiment=smoke", "logger=none", "figures=false", "trainer.max_epochs=1"]
    for number, (experts, seed) in enumerate(product((2, 4), (0, 1))):
        trained(folder / str(number), shared_cache, *quick, f"model.num_experts={experts}", f"seed={seed}")
    trained(folder / "4", shared_cache, *quick, "model.num_experts=8", "replicas=2")
    trained(folder / "5", shared_cache, *quick, "model.num_experts=16")
    (folder / "5/metrics.json").unlink()
    return folder


@pytest.fixture
def sweep(trained_sweep: Path) -> Path:
    """A copy, which tests may change."""
    shutil.copytree(trained_sweep, "sweep")
    return Path("sweep")


def test_a_sweep(sweep: Path, command: Callable):
    frame = analysis.sweep_runs(sweep)
    assert frame.attrs["varied"] == ["model.num_experts"]
    assert frame["seed"].tolist() == [0, 1] * 3
    result = command("compare")(str(sweep))
    assert result.code == 0
    table = pd.read_csv(sweep / "compare.csv")
    assert sorted(table["model.num_experts"]) == [2, 4, 8]
    assert table["seeds"].tolist() == [2, 2, 2]
    assert table["val/income/auroc"].is_monotonic_decreasing
    values = [
        json.loads((sweep / f"{i}/metrics.json").read_text())["test"]["income"]["auroc"] for i in (0, 1)
    ]
    line = table[table["model.num_experts"] == 2].iloc[0]
    assert line["test/income/auroc"] == pytest.approx(np.mean(values))
    half = 12.7062 * abs(values[0] - values[1]) / 2  # Student's t with one degree of freedom
    assert line["test/income/auroc ±"] == pytest.approx(half, rel=1e-4)
    assert f"{np.mean(values):.4f} ± {half:.4f}" in result.out
    assert "not finished, so left out: 5" in result.out
    assert "- 1 unfinished run is left out.\n" in (sweep / "compare.md").read_text()
    assert (sweep / "compare.png").stat().st_size > 10_000


def test_one_run_is_no_sweep(smoke_run: Path, command: Callable):
    done = command("compare")(str(smoke_run))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "must be a folder with several runs, such as a sweep's, but is one run" in done.err
    assert not (smoke_run / "compare.csv").exists()


def test_a_sweep_that_cannot_be_compared(sweep: Path, command: Callable, train: Train):
    assert train("experiment=smoke", "data.split_seed=1", "data.tasks.marital=null", "trainer.max_epochs=1",
                 "hydra.run.dir=sweep/6").code == 0  # fmt: skip
    compare = command("compare")
    Path("empty").mkdir()
    for arguments, message in (
        (["empty"], "empty: has no finished run"),
        (["nosuch"], "nosuch: no such folder"),
        (["sweep"], "sweep/6: has other tasks or rows than sweep/0, so they cannot be compared"),
    ):
        result = compare(*arguments)
        assert result.code == 2
        assert result.err == f"error: {message}\n"
    shutil.rmtree("sweep/6")
    assert "key=depth: must be one of model.num_experts" in compare("sweep", "--key", "depth").err


@pytest.mark.slow
def test_a_sweep_of_seeds_alone_and_of_two_keys(train: Train):
    quick = ["experiment=smoke", "logger=none", "trainer.max_epochs=1"]
    assert train("-m", *quick, "seed=0,1", "hydra.sweep.dir=seeds").code == 0
    table = analysis.sweep_table("seeds")
    assert (table["seeds"].tolist(), table["all runs"].tolist()) == ([2], ["-"])
    # A run inside another run's folder, and a copy of a run, are not counted.
    shutil.copytree("seeds/0", "seeds/0/copy")
    shutil.copytree("seeds/0", "seeds/twice")
    assert analysis.sweep_table("seeds")["seeds"].tolist() == [2]
    two = ["model.num_experts=2,3", "data.batch_size=64,128", "hydra.sweep.dir=two"]
    assert train("-m", *quick, *two).code == 0
    frame = analysis.sweep_runs("two")
    assert frame.attrs["varied"] == ["data.batch_size", "model.num_experts"]
    (legend,) = analysis.plot_sweep("two", "model.num_experts").legends
    assert [text.get_text() for text in legend.get_texts()] == ["batch size 64", "batch size 128"]
    assert_legible(analysis.plot_sweep("two", "model.num_experts"))
    other = ["monitor=val/marital/auroc", "hydra.run.dir=two/other"]
    assert train(*quick, *other).code == 0
    with pytest.raises(ValueError, match="two/other: chose its epoch by val/marital/auroc, but two/0 by"):
        analysis.sweep_runs("two")


def test_the_smallest_loss_comes_first_without_a_mode_of_the_callback(smoke_run: Path):
    for i, loss in enumerate((0.3, 0.1, 0.2)):
        shutil.copytree(smoke_run, f"sweep/{i}")
        content = OmegaConf.create(stored_config.read_plain_config(smoke_run))
        content.model.num_experts, content.monitor, content.monitor_mode = i + 1, "val/income/log_loss", "min"
        content.callbacks = {"best": {"_target_": "mmoe.training.checkpoint_callbacks.Best"}}
        stored_config.write_config(Path(f"sweep/{i}"), stored_config.to_yaml(content))
        metrics = run_folder.read_metrics(smoke_run) | {"monitor": "val/income/log_loss"}
        metrics["val"]["income"]["log_loss"] = loss
        Path(f"sweep/{i}/metrics.json").write_text(json.dumps(metrics))
    assert analysis.sweep_table("sweep")["model.num_experts"].tolist() == [2, 3, 1]


def test_a_wrong_column_gets_a_hint(known: Path):
    with pytest.raises(UserError, match=r"column=Sex: must be a column .*; did you mean sex\?$"):
        analysis.gate_weights_by(known, "Sex")


def test_a_sweep_with_one_seed_shows_no_intervals(smoke_run: Path):
    for i, experts in enumerate((2, 4)):
        shutil.copytree(smoke_run, f"sweep/{i}")
        content = OmegaConf.create(stored_config.read_plain_config(smoke_run))
        content.model.num_experts = experts
        stored_config.write_config(Path(f"sweep/{i}"), stored_config.to_yaml(content))
    figure = analysis.plot_sweep("sweep")
    assert not figure.legends
    assert all(len(axes.lines) == 3 for axes in figure.axes)  # two circles, and the line of their means


def test_methods_are_compared_by_name(smoke_run: Path, command: Callable):
    models = [
        {"_target_": "mmoe.models.mmoe.MMoE", "num_experts": 8, "tower_units": [8], "gate_units": []},
        {"_target_": "mmoe.models.mmoe.MMoE", "num_experts": 8, "tower_units": [16], "gate_units": []},
        {"_target_": "mmoe.models.shared_bottom.SharedBottom", "bottom_units": [64], "tower_units": [8]},
    ]
    for i, model in enumerate(models):
        shutil.copytree(smoke_run, f"sweep/{i}")
        content = OmegaConf.create(stored_config.read_plain_config(smoke_run))
        content.model = model
        stored_config.write_config(Path(f"sweep/{i}"), stored_config.to_yaml(content))
    frame = analysis.sweep_runs("sweep")
    assert frame.attrs["varied"] == ["model", "model.tower_units"]
    assert frame["model"].tolist() == ["MMoE", "MMoE", "SharedBottom"]
    assert frame["model.tower_units"].tolist() == ["[8]", "[16]", "[8]"]
    shutil.rmtree("sweep/1")
    assert analysis.sweep_runs("sweep").attrs["varied"] == ["model"]
    assert "SharedBottom" in command("compare")("sweep").out
    assert "bottom_units" not in Path("sweep/compare.csv").read_text()


@pytest.mark.parametrize("monitor", ["train/loss", "val/units/dead", "gradient_norm", None])
def test_a_sweep_by_a_metric_that_is_not_in_the_results(
    smoke_run: Path, command: Callable, monitor: str | None
):
    for i, experts in enumerate((8, 2, 4)):
        shutil.copytree(smoke_run, f"sweep/{i}")
        content = OmegaConf.create(stored_config.read_plain_config(smoke_run))
        content.model.num_experts, content.trust, content.callbacks = experts, [f"package_{i}"], None
        stored_config.write_config(Path(f"sweep/{i}"), stored_config.to_yaml(content))
        metrics = run_folder.read_metrics(smoke_run) | {"monitor": monitor}
        Path(f"sweep/{i}/metrics.json").write_text(json.dumps(metrics))
    table = analysis.sweep_table("sweep")
    assert table.attrs["varied"] == ["model.num_experts"]
    assert table["model.num_experts"].tolist() == [8, 2, 4]
    assert "(monitored)" not in table
    done = command("compare")("sweep")
    assert done.code == 0, done.err
    assert "In the order of the runs" in done.out
