"""The speedups of a training step do not change what a user sees."""

import io
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from conftest import Result, config
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from rich.console import Console
from rich.progress import Progress
from test_learner import batch, learner
from torch import nn
from torch.utils.data import DataLoader

from mmoe.build import build
from mmoe.training.checkpoint_callbacks import Best
from mmoe.training.lightning_speedups import LightModule, NoProfiler, ProgressBar


def test_the_progress_bar_is_drawn_by_time_and_after_the_last_step(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda *arguments: drawn.append(arguments[-1]))
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    bar = ProgressBar(interval=0.1)
    for step in range(10):
        now += 0.03
        trainer = SimpleNamespace(is_last_batch=step == 9)
        bar.on_train_batch_end(trainer, None, None, None, step)
    assert drawn == [0, 4, 8, 9]


def test_the_progress_bar_fits_on_one_line_of_a_narrow_terminal():
    console = Console(width=60, file=io.StringIO(), force_terminal=True)
    with Progress(*ProgressBar().configure_columns(pl.Trainer(logger=False)), console=console) as progress:
        progress.add_task("Epoch 10/19", total=3000, completed=2900)
        assert len(console.render_lines(progress.get_renderable())) == 1


def test_metrics_are_whole_in_a_narrow_terminal():
    bar, shown = ProgressBar(), []

    class Draw(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *others: object) -> None:
            trainer.progress_bar_metrics.update({"train/loss": 0.25, "val/income/auroc": 0.93})
            bar.on_train_batch_end(trainer, *others)
            console = Console(width=80, file=io.StringIO(), force_terminal=True)
            for line in console.render_lines(bar.progress.get_renderable()):
                shown.append("".join(segment.text for segment in line))

    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = pl.Trainer(callbacks=[bar, Draw()], limit_val_batches=0, **options)
    trainer.fit(learner(), DataLoader([batch()], batch_size=None))
    assert len(shown) == 2
    assert shown[0].startswith("Epoch 1/1 ")
    assert "train/loss: 0.250 " in shown[0]
    assert shown[1].strip() == "val/income/auroc: 0.930"


def test_a_speed_that_was_not_measured_is_not_shown():
    console = Console(width=80, file=io.StringIO())
    with Progress(*ProgressBar().configure_columns(pl.Trainer(logger=False)), console=console) as progress:
        progress.add_task("Testing", total=1, completed=1)
    assert "Testing" in console.file.getvalue()
    assert "it/s" not in console.file.getvalue()


def test_the_progress_bar_counts_epochs_from_1(capsys: pytest.CaptureFixture[str]):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 2}
    trainer = pl.Trainer(callbacks=[ProgressBar()], limit_val_batches=0, **options)
    trainer.fit(learner(), DataLoader([batch()] * 3, batch_size=None))
    shown = capsys.readouterr().out
    assert "Epoch 2/2" in shown


def test_no_stage_waits_for_the_progress_bar(monkeypatch: pytest.MonkeyPatch):
    sleep, slept = time.sleep, []
    monkeypatch.setattr("time.sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))
    trainer = pl.Trainer(callbacks=[ProgressBar()], accelerator="cpu", logger=False)
    trainer.validate(learner(), DataLoader([batch()], batch_size=None), verbose=False)
    assert slept
    assert max(slept) <= 0.01


def test_the_default_profiler_does_nothing_and_the_simple_one_prints_a_table(
    train: Callable[..., Result],
):
    assert isinstance(build(config(), "trainer").profiler, NoProfiler)
    with NoProfiler().profile("a"), NoProfiler().profile("b"):
        pass
    out = train("experiment=smoke", "trainer.profiler=simple", "trainer.max_epochs=1", "figures=false")
    assert out.code == 0
    assert "run_training_batch" in out.out + out.err


def test_a_module_stores_hook_names_and_parameters():
    module = LightModule()
    module._current_fx_name = "training_step"
    module.layer = nn.Linear(2, 1)
    assert module._current_fx_name == "training_step"
    assert [name for name, _ in module.named_parameters()] == ["layer.weight", "layer.bias"]


def test_logging_knows_the_current_hook():
    class Logs(LightModule):
        def configure_optimizers(self) -> None:
            self.log("x", 1.0)

    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(Exception, match="configure_optimizers"):
        trainer.fit(Logs(), [[0]])


@pytest.mark.parametrize(
    ("options", "saves"),
    [({}, False), ({"every_n_train_steps": 5}, True), ({"train_time_interval": timedelta(0)}, True)],
)
def test_the_best_checkpoint_is_considered_after_a_step_only_if_it_is_saved_by_steps_or_time(
    options: dict[str, object], saves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    best = Best(tmp_path, monitor="a", **options)
    key = ModelCheckpoint(tmp_path, monitor="a", **options).state_key
    assert best.state_key == key.replace("ModelCheckpoint", "Best")
    steps: list[object] = []
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda *arguments: steps.append(arguments[-1]))
    best.on_train_batch_end(None, None, None, None, 7)
    assert steps == [7] * saves
