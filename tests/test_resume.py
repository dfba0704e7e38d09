"""A run can be stopped at any moment, and ends as if it had not been."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import processes
import pytest
import pytorch_lightning as pl
import torch
from conftest import OPTIONS, balanced_table
from filelock import FileLock
from omegaconf import OmegaConf

from mmoe.train import main as train_main
from mmoe.training import checkpoints
from mmoe.training.checkpoint_callbacks import Last
from mmoe.training.resume import _rename_csv_logs


def train_until(actions: Mapping[int, Callable[[], object]]) -> None:
    """Train, with an action in each of these steps. It patches `Last`, so the process must end afterwards."""
    after = Last.on_train_batch_end

    def act(self: Last, trainer: pl.Trainer, *rest: object) -> None:
        actions.get(trainer.global_step, lambda: None)()
        after(self, trainer, *rest)

    Last.on_train_batch_end = act
    train_main()


def stopped(step: int, number: signal.Signals, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train in a process that gets a signal in the step, as if it came from outside."""
    return processes.run(partial(train_until, {step: partial(signal.raise_signal, number)}), *arguments)


def optimizer_states(checkpoint: dict) -> list[dict]:
    """The state of the optimizer, or of each of its parts."""
    (stored,) = checkpoint["optimizer_states"]
    return [part["state"] for part in stored.get("parts", [stored])]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, optimizer, metrics, history and predictions, to the bit."""
    for name in ("last", "best"):
        first, second = (
            torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for folder in (one, other)
        )
        assert first["global_step"] == second["global_step"]
        for key, value in first["state_dict"].items():
            assert torch.equal(value, second["state_dict"][key]), key
        for own, others in zip(optimizer_states(first), optimizer_states(second), strict=True):
            for key, state in own.items():
                for part, value in state.items():
                    assert torch.equal(value, others[key][part])
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for found in metrics:
        del found["seconds"], found["samples_per_second"]
    assert metrics[0] == metrics[1]
    for name in ("history.csv", "predictions.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert not list(other.rglob(".*"))
    assert not (other / "run.lock").exists()


# In mid-epoch, at the end of the first epoch, after it, and at the very end.
@pytest.mark.parametrize("step", [50, 237, *(pytest.param(s, marks=pytest.mark.slow) for s in (79, 80))])
def test_ctrl_c_saves_and_says_how_to_resume(train: Callable, whole: Path, step: int):
    done = stopped(step, signal.SIGINT, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    assert done.returncode == 130
    assert done.stdout.endswith("stopped; resume with: python -m mmoe.train resume=cut\n")
    assert done.stderr == ""
    stored = torch.load("cut/checkpoints/last.ckpt", weights_only=True)
    assert stored["global_step"] == step
    assert not Path("cut/metrics.json").exists()
    result = train("resume=cut")
    assert result.code == 0, result.err
    assert "run folder: cut" in result.out
    assert_equal_runs(whole, Path("cut"))
    assert not list(Path().glob("runs/*"))


@pytest.mark.parametrize("step", [200, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 158))])
def test_a_killed_run_resumes(train: Callable, whole: Path, step: int):
    done = stopped(step, signal.SIGKILL, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    assert done.returncode == -signal.SIGKILL
    assert train("resume=cut").code == 0
    assert_equal_runs(whole, Path("cut"))


@pytest.mark.parametrize("model", ["replicas", "synthetic"])
@pytest.mark.slow
def test_replicas_and_streams_resume(train: Callable, model: str):
    options = [*OPTIONS, "trainer.max_epochs=2", "replicas=2"]
    if model == "synthetic":
        small = ["data.rows=3008", "data.batch_size=32", "data.eval_rows=50", "trainer.max_epochs=2"]
        options = [
            "experiment=synthetic",
            "replicas=2",
            "callbacks.last.every_n_steps=20",
            "logger=none",
            *small,
        ]
    assert train(*options, "hydra.run.dir=whole").code == 0
    assert stopped(50, signal.SIGKILL, *options, "hydra.run.dir=cut").returncode == -signal.SIGKILL
    assert train("resume=cut").code == 0
    assert_equal_runs(Path("whole"), Path("cut"))


@pytest.mark.parametrize(
    "damage", ["truncated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flipped", "both"))]
)
def test_a_damaged_checkpoint_is_passed_over(train: Callable, whole: Path, damage: str):
    stopped(200, signal.SIGKILL, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    folder = Path("cut/checkpoints")
    for name in ("last", "previous") if damage == "both" else ("last",):
        content = bytearray((folder / f"{name}.ckpt").read_bytes())
        if damage == "truncated":
            del content[-1000:]
        else:
            content[len(content) // 2] ^= 1
        (folder / f"{name}.ckpt").write_bytes(content)
    result = train("resume=cut")
    assert result.code == 0, result.err
    assert "cut/checkpoints/last.ckpt: damaged" in result.out
    assert ("training starts from the beginning" in result.out) == (damage == "both")
    assert_equal_runs(whole, Path("cut"))


def test_finding_a_checkpoint_removes_nothing(tmp_path: Path):
    last, previous = (tmp_path / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    last.parent.mkdir()
    assert checkpoints.newest(tmp_path) == (None, {})
    checkpoints.save(previous, {"state_dict": {}})
    last.write_bytes(previous.read_bytes()[:-10])
    found, damaged = checkpoints.newest(tmp_path)
    assert (found, [*damaged]) == (previous, [last])
    assert last.exists()
    checkpoints.remove_damaged(tmp_path, damaged)
    assert checkpoints.newest(tmp_path) == (previous, {})
    assert not last.exists()


def test_an_early_stop_is_not_forgotten(train: Callable):
    stop = ["callbacks.early_stopping.patience=1", "trainer.max_epochs=30"]
    assert train(*OPTIONS, *stop, "hydra.run.dir=whole").code == 0
    assert json.loads(Path("whole/metrics.json").read_text())["epochs"] < 30
    shutil.copytree("whole", "cut")
    Path("cut/metrics.json").unlink()  # as if killed while the best checkpoint was tested
    assert train("resume=cut").code == 0
    assert_equal_runs(Path("whole"), Path("cut"))


@pytest.mark.slow
def test_a_run_that_was_moved_resumes(train: Callable, whole: Path):
    stopped(200, signal.SIGKILL, *OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut")
    shutil.move("cut", "elsewhere")
    assert train("resume=elsewhere").code == 0
    assert_equal_runs(whole, Path("elsewhere"))
    assert not Path("cut").exists()


@pytest.mark.slow
def test_accumulated_gradients_are_not_lost(train: Callable):
    options = [*OPTIONS, "trainer.max_epochs=2", "+trainer.accumulate_grad_batches=3"]
    assert train(*options, "hydra.run.dir=whole").code == 0
    assert stopped(25, signal.SIGINT, *options, "hydra.run.dir=cut").returncode == 130
    assert train("resume=cut").code == 0
    assert_equal_runs(Path("whole"), Path("cut"))


def test_the_earlier_log_is_kept(train: Callable):
    options = [*OPTIONS[:-2], OPTIONS[-1], "logger=csv", "trainer.max_epochs=3"]
    stopped(200, signal.SIGKILL, *options, "hydra.run.dir=cut")
    before = Path("cut/csv/metrics.csv").read_text()
    assert train("resume=cut").code == 0
    assert Path("cut/csv/metrics.csv").read_text() == before
    assert "val/income/auroc" in Path("cut/csv_2/metrics.csv").read_text()


def test_every_csv_logger_gets_a_new_folder(tmp_path: Path):
    (tmp_path / "v[1]").mkdir()
    logger = {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": str(tmp_path), "name": ""}
    config = OmegaConf.create({"mine": {**logger, "version": "v[1]"}, "numbered": logger})
    _rename_csv_logs(config)
    assert config.mine.version == "v[1]_2"
    assert "version" not in config.numbered


def test_other_rows_are_refused(train: Callable, census_dir: Path):
    options = ["experiment=smoke", "data.source=auto", f"data.dir={census_dir}", "logger=none"]
    every = "callbacks.last.every_n_steps=5"
    stopped(10, signal.SIGKILL, *options, every, "hydra.run.dir=cut")
    path = census_dir / "census-income.test"
    path.write_text(path.read_text("latin-1").replace("Private", "Publican", 1), "latin-1")
    result = train("resume=cut")
    assert result.code == 2
    assert result.err.endswith("cut: its rows are no longer those of its schema.json\n")


def test_two_processes_do_not_work_in_one_folder(train: Callable):
    stopped(50, signal.SIGKILL, *OPTIONS, "hydra.run.dir=cut")
    before = {path: path.stat().st_mtime_ns for path in Path("cut/checkpoints").iterdir()}
    with FileLock("cut/run.lock"):
        result = train("resume=cut")
    assert result.code == 2
    assert result.err.endswith("cut: another process is at work in this run folder\n")
    assert before == {path: path.stat().st_mtime_ns for path in Path("cut/checkpoints").iterdir()}


def test_a_run_that_has_ended_trains_longer(train: Callable):
    """To the bit, with a schedule that does not depend on the number of epochs."""
    options = [*OPTIONS[:-1], "callbacks.early_stopping=null"]
    assert train(*options, "trainer.max_epochs=4", "hydra.run.dir=whole").code == 0
    assert train(*options, "trainer.max_epochs=2", "hydra.run.dir=cut").code == 0
    for wrong in ("trainer.max_epochs=2", "trainer.max_epochs=1", "+trainer.max_steps=5"):
        result = train("resume=cut", wrong)
        assert result.code == 2
        assert "must be more than the" in result.err
    assert train("resume=cut", "trainer.max_epochs=4").code == 0
    assert_equal_runs(Path("whole"), Path("cut"))
    assert json.loads(Path("cut/metrics.json").read_text())["epochs"] == 4
    assert "max_epochs: 4" in Path("cut/config.yaml").read_text()


def test_a_cosine_is_not_continued_after_its_end(train: Callable):
    """It would rise again."""
    options = [*OPTIONS, "callbacks.early_stopping=null", "trainer.max_epochs=3"]
    assert train(*options, "hydra.run.dir=run").code == 0
    result = train("resume=run", "trainer.max_epochs=4")
    assert result.code == 2
    assert result.err.endswith("ends with epoch 3; init_from=run starts a new training from its weights\n")


def test_an_early_stop_is_not_trained_longer(train: Callable):
    stop = ["callbacks.early_stopping.patience=1", "learner.optimizer.lr=0", "trainer.max_epochs=9"]
    assert train(*OPTIONS, *stop, "hydra.run.dir=run").code == 0
    before = Path("run/metrics.json").read_bytes()
    result = train("resume=run", "trainer.max_epochs=20")
    assert result.code == 2
    assert "resume=run: early stopping ended the run after epoch 2" in result.err
    assert Path("run/metrics.json").read_bytes() == before


@pytest.mark.slow
def test_validations_that_are_counted_over_epochs_are_not_skipped():
    """An epoch has 79 steps. The checkpoint of step 100 would come right before a validation."""
    every = ["+trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=100"]
    options = [*OPTIONS, *every, "callbacks.early_stopping=null", "trainer.max_epochs=3"]
    assert processes.run(train_main, *options, "hydra.run.dir=whole").returncode == 0
    assert stopped(105, signal.SIGKILL, *options, "hydra.run.dir=cut").returncode == -signal.SIGKILL
    assert processes.run(train_main, "resume=cut").returncode == 0
    assert_equal_runs(Path("whole"), Path("cut"))


@pytest.mark.slow
def test_training_longer_skips_a_damaged_checkpoint(train: Callable):
    options = [*OPTIONS, "trainer.max_epochs=2", "callbacks.early_stopping=null"]
    assert train(*options, "hydra.run.dir=run").code == 0
    path = Path("run/checkpoints/last.ckpt")
    path.write_bytes(path.read_bytes()[:-100])
    Path("run/metrics.json").rename("metrics.json")
    Path("run/metrics.json").touch()
    assert train("resume=run").err.startswith("error: run/metrics.json: damaged")
    Path("metrics.json").rename("run/metrics.json")
    result = train("resume=run", "trainer.max_epochs=3")
    assert result.code == 0, result.err
    assert "using the one before it" in result.out + result.err


def test_missing_figures_are_drawn(train: Callable, whole: Path):
    shutil.copytree(whole, "run")
    shutil.rmtree("run/figures")
    before = Path("run/metrics.json").stat().st_mtime_ns
    result = train("resume=run")
    assert result.code == 0, result.err
    assert "run folder: run" in result.out
    assert {path.stem for path in Path("run/figures").iterdir()} == {
        "training_curves", "roc", "precision_recall", "calibration", "gate_weights", "gate_distributions",
    }  # fmt: skip
    assert Path("run/metrics.json").stat().st_mtime_ns == before
    Path("run/run.lock").touch()  # as if killed at its very end
    Path("run/figures/.scratch-0123456789abcdef-roc.png").touch()
    assert train("resume=run").code == 2
    assert not list(Path("run").rglob(".*"))
    assert not Path("run/run.lock").exists()


@pytest.mark.parametrize("kept", ["schema.json", None])
def test_a_kill_before_the_first_step(train: Callable, whole: Path, kept: str | None):
    """A folder holds a run once it has config.yaml. Before that, the same command may start there again."""
    Path("cut").mkdir()
    Path("cut/.scratch-0123456789abcdef-config.yaml").touch()
    if kept:
        shutil.copy(whole / kept, "cut")
    assert train(*OPTIONS, "trainer.max_epochs=3", "hydra.run.dir=cut", "figures=true").code == 0
    assert_equal_runs(whole, Path("cut"))


def test_mistakes(train: Callable, smoke_run: Path):
    copy = Path("copy")
    shutil.copytree(smoke_run, copy)
    Path("empty").mkdir()
    for arguments, message in (
        (["resume=nowhere"], "nowhere/config.yaml: missing; is nowhere a run folder?"),
        (
            ["resume=empty"],
            "resume=empty: holds no run; if it was stopped before its first step, such as while it encoded"
            " rows, repeat the command that started it",
        ),
        (
            ["resume=copy"],
            "resume=copy: the run has already ended; a larger trainer.max_epochs=... trains it longer, if its"
            " schedule does not end",
        ),
        (
            ["resume=copy", "seed=3"],
            "resume=copy: resumes with the run's own configuration; leave out seed=3",
        ),
    ):
        result = train(*arguments)
        assert result.code == 2
        assert result.err == f"error: {message}\n"
        assert not list(Path().glob("runs/*"))
    (copy / "metrics.json").unlink()
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("torch.optim.Adam", "os.system"))
    assert "learner.optimizer._target_=os.system: a run folder may build" in train("resume=copy").err


@pytest.mark.parametrize(
    "balance",
    [
        "dwa", "famo", "nash_mtl", "gradvac", "uncertainty", "pcgrad", "random_loss_weights",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("imtl_l", "stch", "graddrop")),
    ],
)  # fmt: skip
def test_balanced_runs_resume(train: Callable, balance: str):
    """With the state of the strategy, in the middle of the last epoch."""
    balanced_table()
    options = ["--config-dir=conf", "data=mine", "trainer.max_epochs=3", "logger=none", f"balance={balance}"]
    options += ["data.batch_size=12", "figures=false"]
    assert train(*options, "hydra.run.dir=whole").code == 0
    assert stopped(29, signal.SIGINT, *options, "hydra.run.dir=cut").returncode == 130
    stored = torch.load("cut/checkpoints/last.ckpt", weights_only=True)
    assert stored["mmoe"]["balancer"]["strategies"][0]["calls"] == stored["global_step"] == 29
    done = train("resume=cut")
    assert done.code == 0, done.err
    assert_equal_runs(Path("whole"), Path("cut"))


def test_a_stopped_run_cannot_become_shorter_than_it_is(train):
    """A refused length does not stay in config.yaml, so the same command without it resumes the run."""
    stopped(400, signal.SIGINT, *OPTIONS, "trainer.max_epochs=40", "hydra.run.dir=cut")
    before = Path("cut/config.yaml").read_text()
    reached = checkpoints.load(checkpoints.newest(Path("cut"))[0])
    epoch, step = reached["epoch"] + 1, reached["global_step"]
    assert epoch > 1
    for key, value, least in (("max_epochs", 1, epoch), ("max_steps", 1, step)):
        sign = "+" if key == "max_steps" else ""
        result = train("resume=cut", f"{sign}trainer.{key}={value}")
        assert result.code == 2
        assert result.err.startswith(
            f"error: trainer.{key}={value}: must be at least {least}, because the run"
        )
        assert Path("cut/config.yaml").read_text() == before
    assert train("resume=cut", f"trainer.max_epochs={epoch}").code == 0
    assert json.loads(Path("cut/metrics.json").read_text())["epochs"] == epoch
