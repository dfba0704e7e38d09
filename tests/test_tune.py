"""The search: `python -m mmoe.tune`."""

import shlex
import subprocess
from pathlib import Path

import processes
import pytest
from conftest import config, models
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mmoe import CONF_DIR
from mmoe.build import build
from mmoe.errors import UserError
from mmoe.training import optuna_study
from mmoe.training.preparation import build_learner
from mmoe.tune import main as tune_main
from mmoe.tune import space_of, widths_as_lists, with_values

QUICK = ["experiment=smoke", "+trainer.limit_train_batches=2", "folder=tune", "sampler=tpe"]
MODELS = models("esmm")


def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(tune_main, *QUICK, *arguments)


def trials() -> int:
    return len(optuna_study.optuna.load_study(study_name="tune", storage=storage()).trials)


def storage() -> optuna_study.JournalStorage:
    return optuna_study.JournalStorage(optuna_study.JournalFileBackend("tune/journal.log"))


def spaces():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("tune", return_hydra_config=False).space


def test_settings_of_the_command_line_are_not_searched_but_kept(command, train):
    given = ["gate_temperature=2", "trainer.max_epochs=1", "+trainer.limit_train_batches=2", "trainer=cpu",
             "data.source=sample", "objective.task_weights={marital: 0.5}", "threads=1"]  # fmt: skip
    done = command("tune")("experiment=smoke", "model=mmoe", *given, "trials=1", "folder=tune")
    assert done.code == 0, done.err
    assert "trainer.max_epochs" not in OmegaConf.to_yaml(
        OmegaConf.create(storage().get_all_trials(0)[0].params)
    )
    (path,) = Path("tune/experiment").iterdir()
    assert "threads" not in path.read_text()
    assert done.out.endswith(
        f"train it: python -m mmoe.train --config-dir tune experiment={path.stem} threads=1\n"
    )
    again = train("--config-dir", "tune", f"experiment={path.stem}", "logger=none", "hydra.run.dir=run")
    assert again.code == 0, again.err
    trained = OmegaConf.load("run/config.yaml")
    assert (trained.gate_temperature, trained.trainer.max_epochs, trained.trainer.limit_train_batches) == (
        2,
        1,
        2,
    )
    assert trained.objective.task_weights == {"marital": 0.5}


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
    best = optuna_study.optuna.load_study(study_name="tune", storage=storage()).best_params
    (path,) = Path("tune/experiment").iterdir()
    assert str(path.stem) in done.stdout
    quick = ["trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
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
        ["model=shared_bottom", "features=paddlerec"],
        ["model=shared_bottom", "learner.optimizer.weight_decay=0.01"],
        ["model=shared_bottom", "space.shared_bottom={model.tower_units: {low: 4, high: 8, width: true}}"],
    ):
        done = tune(*wrong, "trials=4")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: tune/journal.log: must have the")
        assert done.stderr.count("\n") == 1
        assert Path("tune/journal.log").read_bytes() == journal


TABLE = """
_target_: mmoe.data.table_data.TableData
train: rows.csv
validation: {fraction: 0.2}
test: {fraction: 0.2}
columns: {age: numeric}
tasks: {click: {column: click}}
main_task: click
"""


@pytest.fixture
def table_options() -> list[str]:
    """A search on a table whose configuration is found by hydra.searchpath."""
    Path("my conf/data").mkdir(parents=True)
    Path("my conf/data/mine.yaml").write_text(TABLE)
    lines = [f"{20 + i % 50},{i % 3 % 2},{1 + i % 4}\n" for i in range(400)]
    Path("rows.csv").write_text("age,click,month\n" + "".join(lines))
    found = f"hydra.searchpath=['file://{Path('my conf').absolute()}']"
    short = ["trainer.max_epochs=1", "trainer=cpu", "logger=none"]
    return [found, "data=mine", "model=mmoe", *short, "sampler=tpe", "trials=1", "threads=1"]


def test_the_printed_command_trains_with_the_replaced_split(command, train, table_options: list[str]):
    replaced = ["~data.test", "+data.test={column: month, value: 2}"]
    done = command("tune")(*table_options, *replaced, "folder='my search'")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("train it: "))
    python, _, module, *arguments = shlex.split(line.removeprefix("train it: "))
    assert (python, module) == ("python", "mmoe.train")
    again = train(*arguments, "logger=none", "hydra.run.dir=run")
    assert again.code == 0, again.err
    config = OmegaConf.load("run/config.yaml")
    rule = {"fraction": None, "last": None, "by": None, "column": "month", "value": 2, "of": "train"}
    assert config.data.test == rule
    assert (config.threads, config.trainer.max_epochs) == (1, 1)


@pytest.mark.parametrize(
    "deleted", [["~data.main_task"], ["~learner.scheduler", "+learner.scheduler={a: 1}"]]
)
def test_a_deletion_cannot_be_kept(command, table_options: list[str], deleted: list[str]):
    done = command("tune")(*table_options, *deleted, "folder=tune")
    assert done.code == 2
    assert done.err.startswith(
        f"error: {deleted[0]}: a search cannot delete a setting; write an experiment without it"
    )


def test_chosen_features_are_kept(command):
    given = ["features.columns=[age,sex]", "trainer.max_epochs=1", "data.source=sample", "trials=1"]
    done = command("tune")(*QUICK, "model=mmoe", *given)
    assert done.code == 0, done.err
    (path,) = Path("tune/experiment").iterdir()
    assert OmegaConf.load(path).features.columns == ["age", "sex"]


def test_the_choice_of_a_learner_is_kept(command, table_options: list[str]):
    Path("my conf/learner").mkdir()
    Path("my conf/learner/slow.yaml").write_text("defaults: [adam]\noptimizer: {lr: 1e-5}\n")
    ranges = "space.all={trainer.max_epochs: {low: 1, high: 1}}"
    done = command("tune")(*table_options, "learner=slow", ranges, "folder=tune")
    assert done.code == 0, done.err
    (path,) = Path("tune/experiment").iterdir()
    assert {"override /learner": "slow"} in OmegaConf.load(path).defaults


@pytest.mark.slow
def test_the_worst_trials_end_early_and_count():
    """With a small enough learning rate, a network learns nothing."""
    rates = "space.all={learner.optimizer.lr: {low: 1e-9, high: 1e-3, log: true}}"
    done = tune("model=mmoe", "trials=12", "prune=0.5", rates)
    assert done.returncode == 0, done.stderr
    study = optuna_study.optuna.load_study(study_name="tune", storage=storage())
    ended = [trial.state.name for trial in study.trials]
    assert set(ended) == {"COMPLETE", "PRUNED"}
    assert len(ended) == 12
    assert set(ended[:5]) == {"COMPLETE"}  # the first ones are what the others are compared with
    for trial in study.trials:
        assert list(trial.intermediate_values) == ([1, 2] if trial.state.name == "COMPLETE" else [1])


def test_a_space_may_hold_options_of_the_data():
    """Each trial then builds its data anew."""
    done = tune("model=mmoe", "trials=2", "+space.mmoe={data.batch_size: {low: 64, high: 128}}")
    assert done.returncode == 0, done.stderr
    study = optuna_study.optuna.load_study(study_name="tune", storage=storage())
    sizes = {trial.params["data.batch_size"] for trial in study.trials}
    assert len(sizes) == 2
    (path,) = Path("tune/experiment").iterdir()
    assert f"batch_size: {study.best_params['data.batch_size']}" in path.read_text()


@pytest.mark.slow
def test_processes_share_a_search():
    started = [
        processes.start(tune_main, *QUICK, "trials=4", out=Path(f"out{i}"), err=Path(f"err{i}"))
        for i in range(2)
    ]
    for process in started:
        process.join(300)
        assert process.exitcode == 0
    assert 4 <= trials() <= 5  # one may end while the other is in its last


@pytest.mark.parametrize("model", MODELS)
def test_every_method_has_a_space_whose_ends_can_be_trained(model: str):
    space = space_of(spaces(), model)
    assert {"learner.optimizer.lr", "trainer.max_epochs"} <= space.keys()
    base = config("data.source=sample", f"model={model}", "replicas=1")
    schema = build(base, "data").schema
    for end in ("low", "high"):
        values = widths_as_lists({key: given[end] for key, given in space.items()}, space)
        tried = with_values(base, values)
        for key, value in values.items():
            assert OmegaConf.select(tried, key) == value
        learner = build_learner(tried, schema)
        widest = max(parameter.shape[-1] for parameter in learner.parameters())
        assert widest <= 2048 + 2 * 16  # the first layer has the gates beside the experts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trials=0"], "error: trials=0: must be an integer of at least 1\n"),
        (["prune=1"], "error: prune=1: must be a number in [0, 1)\n"),
        (["sampler=grid"], "error: sampler=grid: must be one of gp, tpe\n"),
        (["space.mmoe={model.num_experts: {low: 5, high: 1}}"], "error: space.mmoe.model.num_experts={"),
        (
            ["space.mmoe={model.num_experts: 5}"],
            "error: space.mmoe.model.num_experts=5: must have low and high",
        ),
        (["space.mmoe={model.num_experts: {low: few, high: 1}}"], "error: space.mmoe.model.num_experts={"),
        (
            ["space.mmoe={model.num_experts: {low: 0, high: 8, log: true}}"],
            "error: space.mmoe.model.num_experts={'low': 0, 'high': 8, 'log': True}: low must be above 0",
        ),
        (["+space.all={seed: 5}"], "error: space.all.seed=5: must have low and high"),
        (["~space.mmoe"], "error: space.mmoe: is missing; the methods with ranges are"),
    ],
)
def test_mistakes(command, arguments: list[str], message: str):
    done = command("tune")(*QUICK, *arguments)
    assert done.code == 2
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1


def opened(described: dict[str, str] | None = None) -> optuna_study.optuna.Study:
    return optuna_study.open_study(Path("tune"), "tpe", 0.0, 0, "maximize", described or {"method": "mmoe"})


@pytest.fixture
def journal() -> Path:
    """The journal of a search with three trials."""
    study = opened()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return Path("tune/journal.log")


@pytest.mark.parametrize("kept", [1, 5, 11, 40, -1])
def test_a_search_resumes_after_an_unfinished_line(journal: Path, kept: int):
    whole = journal.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    journal.write_bytes(whole + last[:kept])
    study = opened()
    assert len(study.trials) == 3
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(opened().trials) == 4
    assert journal.read_bytes().startswith(whole)


def test_an_unfinished_first_line_or_an_empty_journal_is_a_new_search(journal: Path):
    first = journal.read_bytes().splitlines(keepends=True)[0]
    for content in (b"", first[:-9]):
        journal.write_bytes(content)
        opened().optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        assert len(opened().trials) == 1


def _cut_in_the_middle(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3][:20], *lines[4:]]


def _of_another_study(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"tune"', b'"mine"') for line in lines]


@pytest.mark.parametrize(
    "damage",
    [
        _cut_in_the_middle,
        _of_another_study,
        lambda lines: [*lines, b"garbage\n"],
        lambda lines: [*lines, b"garbage"],
        lambda lines: [*lines, b"\0" * 40],
        lambda lines: [*lines, b"\n"],
        lambda lines: [b"\xff\xfe\0garbage\n", *lines],
        lambda lines: [b"\xff\xfe\0garbage"],
        lambda lines: [*lines, b"[1]\n", b"{}\n"],
        lambda lines: [*lines, b"{}\n"],
        lambda lines: [*lines, b'{"op_code":99,"worker_id":"a"}\n'],
        lambda lines: [b"[" * 100_000 + b"\n", *lines],
    ],
)
def test_a_damaged_journal_is_named_on_one_line_and_stays_as_it_was(journal: Path, damage):
    content = b"".join(damage(journal.read_bytes().splitlines(keepends=True)))
    journal.write_bytes(content)
    with pytest.raises(UserError, match=r"^tune/journal\.log: (must|damaged)"):
        opened()
    assert journal.read_bytes() == content
    assert not Path("tune/journal.log.lock").is_symlink()


def test_a_journal_of_another_search_keeps_its_unfinished_line(journal: Path):
    content = journal.read_bytes() + b'{"op_code":5'
    journal.write_bytes(content)
    with pytest.raises(UserError, match="must have the method of this search"):
        opened({"method": "cross_stitch"})
    with pytest.raises(UserError, match="must have the direction of this search, minimize; it has maximize"):
        optuna_study.open_study(Path("tune"), "tpe", 0.0, 0, "minimize", {"method": "mmoe"})
    assert journal.read_bytes() == content


def test_a_lock_of_a_killed_process_can_be_seen_to_be_old(journal: Path, monkeypatch: pytest.MonkeyPatch):
    links = []
    monkeypatch.setattr(optuna_study.os, "symlink", lambda *names: links.append(names) or True)
    monkeypatch.setattr(optuna_study.JournalFileSymlinkLock, "release", lambda self: None)
    opened()
    assert links
    # Optuna follows the link from the folder that it is in.
    assert {(Path(link).parent / target).resolve() for target, link in links} == {journal.resolve()}


def test_the_folder_of_a_search_must_be_a_folder():
    Path("file").touch()
    for folder in ("file", "file/tune"):
        with pytest.raises(UserError, match=f"^folder={folder}: must be a directory"):
            optuna_study.open_study(Path(folder), "tpe", 0.0, 0, "maximize", {})
    Path("tune/journal.log").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^tune/journal\.log: must be a file"):
        opened()


@pytest.mark.slow
def test_a_trial_that_diverges_does_not_end_the_search():
    rates = "space.all={learner.optimizer.lr: {low: 1e-3, high: 1e30, log: true}}"
    done = tune(rates, "trials=6", "trainer.limit_train_batches=20")
    assert done.returncode == 0, done.stderr
    states = {
        trial.state for trial in optuna_study.optuna.load_study(study_name="tune", storage=storage()).trials
    }
    assert states == set(optuna_study.ENDED)
    assert trials() == 6
    assert "of 6 trials" in done.stdout
    done = tune("folder=other", "space.all={learner.optimizer.lr: {low: 1e30, high: 1e31}}", "trials=2")
    assert done.returncode == 2
    assert "error: training diverged in all 2 trials; lower the learning rates (space.all." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["monitor_mode=up"], "error: monitor_mode=up: must be max, min or null\n"),
        (["+trainer.limit_val_batches=0"], "error: trainer.limit_val_batches=0: must be above 0"),
        (["+learner.optimizer.betas=[2,0.9]"], "error: learner.optimizer: "),
        (
            [
                "balance=dwa",
                "data.features=[age]",
                "+data.tasks.jobs={column: number_worked_for, kind: count}",
            ],
            "error: balance: DWA needs losses above 0, and the loss of task jobs (count) may be negative",
        ),
        (["balance=pcgrad", "compile=true"], "error: balance: PCGrad needs the gradient of each task"),
    ],
)
def test_mistakes_that_end_a_search_before_a_trial_has(command, arguments: list[str], message: str):
    done = command("tune")(*QUICK, *arguments)
    assert done.code == 2, done.err
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1
    assert not Path("tune").exists()


def test_a_trial_without_a_validation_ends_the_search(command):
    done = command("tune")(*QUICK, "+trainer.check_val_every_n_epoch=100")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: trainer: must validate at least once")
