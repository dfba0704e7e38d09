"""The search: `python -m mmoe.tune`."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mmoe import CONF_DIR, search
from mmoe.build import build, build_learner

QUICK = ["experiment=smoke", "+trainer.limit_train_batches=2", "folder=tune", "sampler=tpe"]
MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))


def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmoe.tune", *QUICK, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def trials() -> int:
    return len(search.optuna.load_study(study_name="tune", storage=storage()).trials)


def storage() -> search.JournalStorage:
    return search.JournalStorage(search.JournalFileBackend("tune/journal.log"))


def spaces():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("tune", return_hydra_config=False).space


@pytest.mark.slow
def test_a_search_is_resumed_and_its_result_trains(train):
    done = tune("model=shared_bottom", "trials=1")
    assert done.returncode == 0, done.stderr
    assert trials() == 1
    done = tune("model=shared_bottom", "trials=3")
    assert done.returncode == 0, done.stderr
    assert trials() == 3
    assert "of 3 trials" in done.stdout
    assert "Best value" in done.stderr  # the progress bar
    assert tune("model=shared_bottom", "trials=3").returncode == 0
    assert trials() == 3
    best = search.optuna.load_study(study_name="tune", storage=storage()).best_params
    (path,) = Path("tune/experiment").iterdir()
    assert str(path.stem) in done.stdout
    quick = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "logger=none", "hydra.run.dir=run"]
    again = train("--config-dir", "tune", f"experiment={path.stem}", *quick)
    assert again.code == 0, again.err
    trained = OmegaConf.load("run/config.yaml")
    assert trained.learner.optimizer.lr == pytest.approx(best["learner.optimizer.lr"])
    assert trained.model.bottom_units == [best["model.bottom_units"]]
    assert trained.data.source == "sample"

    # A journal of another space, method or data set is refused, and stays as it was.
    journal = Path("tune/journal.log").read_bytes()
    for wrong in (
        ["model=single_task"],
        ["model=shared_bottom", "features=seed"],
        ["model=shared_bottom", "space.shared_bottom={model.tower_units: {low: 4, high: 8, width: true}}"],
    ):
        done = tune(*wrong, "trials=4")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: tune/journal.log: must be of the same")
        assert done.stderr.count("\n") == 1
        assert Path("tune/journal.log").read_bytes() == journal


@pytest.mark.slow
def test_processes_share_a_search():
    command = [sys.executable, "-m", "mmoe.tune", *QUICK, "trials=4"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert 4 <= trials() <= 5  # one may end while the other is in its last


@pytest.mark.parametrize("model", MODELS)
def test_every_method_has_a_space_whose_ends_can_be_trained(model: str):
    space = search.space_of(spaces(), model)
    assert {"learner.optimizer.lr", "trainer.max_epochs"} <= space.keys()
    base = config("data.source=sample", f"model={model}", "replicas=1")
    schema = build(base, "data").schema
    for end in ("low", "high"):
        values = search.listed({key: given[end] for key, given in space.items()}, space)
        tried = search.apply(base, values)
        for key, value in values.items():
            assert OmegaConf.select(tried, key) == value
        learner = build_learner(tried, schema)
        widest = max(parameter.shape[-1] for parameter in learner.parameters())
        assert widest <= 2048 + 2 * 16  # the first layer has the gates beside the experts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trials=0"], "error: trials=0: must be an integer of at least 1\n"),
        (["sampler=grid"], "error: sampler=grid: must be one of gp, tpe\n"),
        (["space.mmoe={model.num_experts: {low: 5, high: 1}}"], "error: space.mmoe.model.num_experts={"),
        (["space.mmoe={model.num_experts: 5}"], "error: space.mmoe.model.num_experts=5: must be {low, high}"),
        (["~space.mmoe"], "error: space.mmoe: must be there; the methods with a space are"),
    ],
)
def test_mistakes(arguments: list[str], message: str):
    done = tune(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
