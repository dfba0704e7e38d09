"""Small data sets in the official format, and the command line as a user runs it."""

import gzip
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import processes
import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.functional import linear

from mmoe import CONF_DIR
from mmoe.data.census_files import SAMPLE_DIR
from mmoe.train import main as train_main

# A training with everything that has a state: dropout, a schedule, early stopping, checkpoints in mid-epoch.
OPTIONS = [
    "experiment=smoke", "model.dropout=.2", "callbacks.last.every_n_steps=20", "logger=none",
    "learner.scheduler={_target_: torch.optim.lr_scheduler.CosineAnnealingLR, _partial_: true, T_max: 3}",
]  # fmt: skip


def assert_legible(figure: Figure) -> None:
    """Check that no panel is narrow, and that all text lies in the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "axes sizes collapsed to zero"
        figure.draw_without_rendering()
    inches = figure.get_size_inches()
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            assert min(axes.get_position().size * inches) > 0.8
    extent = figure.get_tightbbox()
    assert extent.x0 > -0.05
    assert extent.x1 < inches[0] + 0.05
    assert extent.y0 > -0.05
    assert extent.y1 < inches[1] + 0.05


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache directory of all tests, so that the bundled sample is encoded only once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own working directory, and no data except what it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMOE_CACHE_DIR", str(shared_cache))
    monkeypatch.delenv("MMOE_CENSUS_DIR", raising=False)
    # Scripts that run in this process set the number of threads, which changes the last bits of results.
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


@pytest.fixture
def own_cache(_private: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, `cache`, for this test alone."""
    monkeypatch.setenv("MMOE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """The folder of the official files; a test that needs them is skipped if the machine has none."""
    folder = os.environ.get("MMOE_CENSUS_DIR")
    if not folder:
        pytest.skip("MMOE_CENSUS_DIR is not set: no real rows here")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The run folder of `experiment=smoke`, trained once; tests must not change it."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    return trained(folder, shared_cache, "experiment=smoke", "logger=none", "figures=false")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run with OPTIONS that was never stopped: 3 epochs of 79 steps; tests must not change it."""
    return trained(tmp_path_factory.mktemp("whole") / "run", shared_cache, *OPTIONS, "trainer.max_epochs=3")


def trained(folder: Path, cache: Path, *options: str) -> Path:
    """Train in a process of its own, which leaves the random state of this one as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMOE_CACHE_DIR", str(cache))
        patch.delenv("MMOE_CENSUS_DIR", raising=False)
        done = processes.run(train_main, *options, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def sample_lines(name: str = "census-income.data") -> list[str]:
    """Lines of a file of the bundled sample, without line ends."""
    return gzip.open(SAMPLE_DIR / f"{name}.gz", "rt", encoding="latin-1").read().splitlines()


@pytest.fixture
def census_dir(tmp_path: Path) -> Path:
    """Two plain files in the official format: 1,200 and 600 rows of the sample."""
    folder = tmp_path / "census"
    folder.mkdir()
    for name, rows in (("census-income.data", 1200), ("census-income.test", 600)):
        text = "".join(f"{line}\n" for line in sample_lines(name)[:rows])
        (folder / name).write_text(text, "latin-1")
    return folder


def models(*without: str) -> list[str]:
    """The methods in conf/model/, except those in `without`, which need tasks that a test does not have."""
    return sorted({path.stem for path in (CONF_DIR / "model").glob("*.yaml")} - set(without))


def balanced_table(missing: bool = True) -> None:
    """Write a small table of two tasks, and its configuration `data=mine` for `--config-dir=conf`.

    If labels may be missing, `buy` is known in 30 % of the rows.
    """
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"amount": random.normal(size=240), "city": random.choice(["a", "b", "c"], 240)})
    for name, slope in (("clicked", 1.0), ("bought", -0.5)):
        rows[name] = (random.random(240) < 1 / (1 + np.exp(-slope * rows["amount"]))).astype(int)
    rows["shown"] = (random.random(240) < 0.3).astype(int)
    rows.to_csv("train.csv", index=False)
    where = {"where": "shown"} if missing else {}
    config = {
        "_target_": "mmoe.data.table_data.TableData", "train": "train.csv",
        "validation": {"fraction": 0.2}, "test": {"fraction": 0.2},
        "columns": {"amount": "numeric", "city": "categorical"},
        "tasks": {"click": {"column": "clicked"}, "buy": {"column": "bought", **where}},
        "batch_size": 16, "seed": 0,
    }  # fmt: skip
    Path("conf/data").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), "conf/data/mine.yaml")


def only_run() -> Path:
    """The only run folder below runs/."""
    (folder,) = Path("runs").glob("*/*")
    return folder


def config(*overrides: str) -> DictConfig:
    """The composed configuration of `python -m mmoe.train`, without Hydra's own part."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], Command]:
    """Run `python -m mmoe.NAME ARGUMENTS` in this process, by `command(NAME)(*ARGUMENTS)`."""

    def of(name: str) -> Command:
        def run(*arguments: str) -> Result:
            monkeypatch.setattr(sys, "argv", [name, *arguments])
            capfd.readouterr()
            try:
                import_module(f"mmoe.{name}").main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            return Result(code, *capfd.readouterr())

        return run

    return of


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run `python scripts/NAME.py ARGUMENTS` in this process, by `script(NAME, *ARGUMENTS)`.

    The commands that it starts are forked processes.
    """

    def run(name: str, *arguments: str) -> Result:
        monkeypatch.syspath_prepend(str(processes.SCRIPTS))
        monkeypatch.setattr(import_module("commands"), "subprocess", processes.FORKED)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        try:
            import_module(name).main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def train(command: Callable[[str], Command]) -> Command:
    """Run `python -m mmoe.train ARGUMENTS` in this process; figures and a card only if asked for."""
    run = command("train")

    def quick(*arguments: str) -> Result:
        resumed = any(argument.startswith("resume=") for argument in arguments)
        off = (
            []
            if resumed
            else [n for n in ("figures", "card") if not any(a.startswith(f"{n}=") for a in arguments)]
        )
        return run(*arguments, *(f"{name}=false" for name in off))

    return quick


def assert_equal_with_gradients(
    model: nn.Module, looped: Callable[[Tensor], tuple[Tensor, ...]], batch: int = 9
) -> None:
    """The outputs of `model` and of a plain loop over its parts are equal, and so are all gradients."""
    model.double()
    x = torch.randn(batch, 10, dtype=torch.float64, requires_grad=True)
    ours, theirs = model(x), looped(x)
    for a, b in zip(ours, theirs, strict=False):  # a method without gates has no more to compare
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)
    leaves = [x, *model.parameters()]
    gradients = [
        torch.autograd.grad(sum(part.square().sum() for part in output), leaves) for output in (ours, theirs)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().sum() > 0


def layer_by_layer(layers: nn.Sequential, n: int, x: Tensor) -> Tensor:
    """Apply network n of a stack of networks, one layer at a time."""
    for layer in layers:
        if hasattr(layer, "by_layer"):
            weight, bias = layer.by_layer()
            x = linear(x, weight[n].T, bias[n])
        else:
            x = layer(x)
    return x
