"""What makes steps cheaper changes nothing that a user sees."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from conftest import Result, config
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint, RichProgressBar
from torch import nn

from mmoe.build import build
from mmoe.training.checkpoint_callbacks import Best
from mmoe.training.lightning_speedups import LightModule, NoProfiler, ProgressBar


def test_the_progress_bar_is_drawn_by_the_clock_and_after_the_last_step(monkeypatch: pytest.MonkeyPatch):
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


def test_the_profiler_of_the_configuration_does_nothing_and_another_shows_its_table(
    train: Callable[..., Result],
):
    assert isinstance(build(config(), "trainer").profiler, NoProfiler)
    with NoProfiler().profile("a"), NoProfiler().profile("b"):
        pass
    out = train("experiment=smoke", "trainer.profiler=simple", "trainer.max_epochs=1", "figures=false")
    assert out.code == 0
    assert "run_training_batch" in out.out + out.err


def test_a_module_takes_hook_names_and_parameters():
    module = LightModule()
    module._current_fx_name = "training_step"
    module.layer = nn.Linear(2, 1)
    assert module._current_fx_name == "training_step"
    assert [name for name, _ in module.named_parameters()] == ["layer.weight", "layer.bias"]


def test_logging_still_knows_the_hook_it_is_called_in():
    class Logs(LightModule):
        def configure_optimizers(self) -> None:
            self.log("x", 1.0)

    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(Exception, match="configure_optimizers"):
        trainer.fit(Logs(), [[0]])


def test_hooks_that_somebody_has_are_called_and_others_passed_over():
    calls: list[str] = []

    class Counts(pl.Callback):
        def on_before_zero_grad(self, *_: object) -> None:
            calls.append("callback")

    class Module(LightModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).sum()

        def on_after_backward(self) -> None:
            calls.append("module")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, callback = Module(), Counts()
    given = LambdaCallback(on_train_batch_end=lambda *_: calls.append("lambda"))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback, given],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(12, 2), 4))
    assert calls == ["callback", "module", "lambda"] * 3
    assert callback.on_train_batch_end is None
    assert module.on_before_zero_grad is None


@pytest.mark.parametrize(
    ("options", "asked"),
    [({}, False), ({"every_n_train_steps": 5}, True), ({"train_time_interval": timedelta(minutes=1)}, True)],
)
def test_the_best_checkpoint_is_asked_after_a_step_only_where_it_saves_then(
    options: dict[str, object], asked: bool, tmp_path: Path
):
    best = Best(tmp_path, monitor="a", **options)
    key = ModelCheckpoint(tmp_path, monitor="a", **options).state_key
    assert best.state_key == key.replace("ModelCheckpoint", "Best")
    best.setup(pl.Trainer(logger=False, accelerator="cpu"), nn.Module(), "fit")
    assert callable(best.on_train_batch_end) == asked
