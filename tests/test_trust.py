"""A run folder of somebody else runs no code of its own; a user's own classes work if they are trusted."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import processes
import pytest
import yaml
from conftest import config
from omegaconf import OmegaConf

from mmoe import analysis, load
from mmoe.build import build
from mmoe.data.census_files import SAMPLE_DIR
from mmoe.errors import UserError
from mmoe.train import main
from mmoe.training import run_folder, stored_config
from mmoe.training.trust import check_targets

MONITOR = ("monitor=val/income/auroc", "monitor_mode=max")  # a run stores the monitor of its tasks
ROWS = SAMPLE_DIR / "census-income.test.gz"
SHELL = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"
# Values that would create a file if they were built, by the key that holds them.
CRAFTED = {
    "inputs.categorical": {
        "_target_": SHELL, "entrypoint": "/bin/sh", "args": ["-c", "touch pwned"], "env": {}, "stdout": None,
        "stderr": None, "local_rank_id": 0, "numa_options": None,
    },
    "model.dropout": "${oc.create:{_target_:os.system,command:touch pwned}}",
    "inputs.dropout": "${hydra:runtime.cwd}",
    "seed": "${oc.env:HOME}",
    "inputs.numeric": {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "pwn", "source": "local"},
    "model._target_": "torch.utils.cpp_extension.load",
    "learner.optimizer": {"_target_": "torch.load", "f": "pwn.pt"},
    "trainer.profiler": {"_target_": "pytorch_lightning.core.saving.load_hparams_from_yaml", "config": "x"},
    "callbacks.mine": {
        "_target_": "mmoe.cli.sweep_jobs.subprocess.Popen", "args": "touch pwned", "shell": True
    },
    "data._target_": "mmoe.run.load",
    "objective._target_": "torch.jit.load",
}  # fmt: skip


def damaged(smoke_run: Path, key: str, value: object) -> Path:
    """A copy of a run folder, not ended, with one value of config.yaml changed."""
    folder = Path("crafted")
    shutil.copytree(smoke_run, folder)
    (folder / "metrics.json").unlink()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[name] = value
    stored_config.write_config(folder, stored_config.to_yaml(OmegaConf.create(config)))
    return folder


@pytest.mark.parametrize("key", CRAFTED)
def test_a_run_folder_runs_no_commands(command: Callable, smoke_run: Path, key: str):
    folder = damaged(smoke_run, key, CRAFTED[key])
    done = command("train")(f"resume={folder}")
    assert done.code == 2
    assert done.err.startswith(("error: ", "error: crafted/config.yaml, "))
    assert key.split(".")[0] in done.err
    assert done.err.count("\n") == 1
    predicts = key.startswith(("inputs", "model", "seed"))
    done = command("predict")(f"run={folder}", f"input={ROWS}", "output=scores.parquet")
    assert done.code == (2 if predicts or "${" in str(CRAFTED[key]) else 0), done.err
    done = command("evaluate")(f"run={folder}", "resamples=0")
    assert done.code == (0 if key.startswith("callbacks") else 2), done.err
    for call in (lambda run: load(run).network(), analysis.gate_weights):
        if predicts:
            with pytest.raises(UserError):
                call(folder)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("target", [SHELL, "os.system", "builtins.exec", "torch.nn.Linear"])
def test_other_classes_are_built_only_if_they_are_trusted(target: str):
    config = {"a": [{"_target_": target}]}
    package = target.split(".")[0]
    # The message does not name a whole library, which has functions that run commands, and nothing of
    # Python's own, because no user's run needs it.
    hint = rf"; if you trust this class, give trust=\[{package}\.\w" if package == "torch" else "Trainer$"
    with pytest.raises(UserError, match=rf"config.a\[0\]._target_=.*{hint}"):
        check_targets(config)
    for wrong in ("mypackage", None, [1], 5):
        with pytest.raises(UserError, match="must be a list of packages"):
            check_targets(config, trust=wrong)
    with pytest.raises(UserError):
        check_targets(config, trust=[target[:-1], package[:-1]])
    check_targets(config, trust=[package])
    check_targets(config, trust=[target])


def test_a_foreign_module_is_not_imported_to_check_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "foreign.py").write_text("open('pwned', 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"foreign\.Model"):
        check_targets({"_target_": "foreign.Model"})
    assert "foreign" not in sys.modules
    assert not Path("pwned").exists()


OWN = '''
"""Classes of a user."""
import pytorch_lightning as pl
import torch
from mmoe import DataModule, MMoE
from mmoe.data.census import CensusData

class Hello(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        print("hello")

class GradientNorm(pl.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        module.log("gradient_norm", torch.stack(norms).norm())

class MyOptimizer(torch.optim.SGD):
    pass

class MyModel(MMoE):
    pass

class MyData(DataModule):
    """Our own rows: those of the sample, by a class of the user."""

    def __init__(self, batch_size=64):
        sample = CensusData(
            dir=None, source="sample", url="", cache_dir=None, features=["age", "sex"],
            tasks={"income": {"column": "income", "positive": ["50000+."]}}, main_task="income",
            num_bins=8, split_seed=0,
        )
        super().__init__(lambda: sample.dataset, batch_size=batch_size)

class PlainData(pl.LightningDataModule):
    """Nothing of mmoe but its rows and its schema."""

    def __init__(self):
        super().__init__()
        self.ours = MyData()
        self.schema = self.ours.schema

    def train_dataloader(self):
        return torch.utils.data.DataLoader(list(self.ours.train_dataloader()), batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(list(self.ours.val_dataloader()), batch_size=None)

    def test_dataloader(self):
        return torch.utils.data.DataLoader(list(self.ours.test_dataloader()), batch_size=None)
'''
BRING = {
    "callback": ["+callbacks.hello={_target_: own_classes_of_a_test.Hello}"],
    "monitor": [
        "+callbacks.norm={_target_: own_classes_of_a_test.GradientNorm}", "callbacks.best.mode=min",
        "callbacks.best.monitor=gradient_norm",
    ],
    "model": ["model._target_=own_classes_of_a_test.MyModel"],
    "optimizer": [
        "learner.optimizer={_target_: own_classes_of_a_test.MyOptimizer, _partial_: true, lr: 0.1}",
    ],
    "data": ["~data", "+data={_target_: own_classes_of_a_test.MyData}", "monitor=val/income/auroc"],
    "plain data": [
        "~data", "+data={_target_: own_classes_of_a_test.PlainData}", "monitor=val/income/auroc",
    ],
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classes_of_a_test.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=[pytest.mark.slow] if name != "callback" else []) for name in BRING]
)
def test_own_classes_work_in_every_command(command: Callable, own: None, what: str):
    train, trust = command("train"), "trust=[own_classes_of_a_test]"
    overrides = ["experiment=smoke", "logger=none", "trainer.max_epochs=1", *BRING[what]]
    if "data" in what:
        overrides.remove("experiment=smoke")
        overrides += ["objective.task_weights=null", "learner.scheduler=null"]
    done = train(*overrides, "hydra.run.dir=run", "figures=true")
    assert done.code == 0, done.err
    assert Path("run/figures/roc.png").exists()
    assert len(pd.read_parquet("run/predictions.parquet")) == 5000

    # The run is resumed as if it had been stopped before its test.
    for name in ("metrics.json", "predictions.parquet"):
        Path("run", name).unlink()
    refused = train("resume=run")
    assert refused.code == 2
    assert "give trust=[own_classes_of_a_test]" in refused.err
    done = train("resume=run", trust)
    assert done.code == 0, done.err
    longer = train("resume=run", trust, "trainer.max_epochs=2")
    assert longer.code == 0, longer.err

    done = command("evaluate")("run=run", trust, "resamples=0")
    assert done.code == 0, done.err
    if "data" not in what:
        done = command("predict")("run=run", trust, f"input={ROWS}", "output=scores.parquet")
        assert done.code == 0, done.err
    done = command("export")("run=run", trust, "format=torch_export")
    assert done.code == 0, done.err
    if what != "plain data":
        opened = load("run", trust=["own_classes_of_a_test"])
        assert len(opened.scored()) == 5000
        assert len(analysis.expert_ablation(opened)) == 8
    assert load("run", trust=["own_classes_of_a_test"]).network()


def test_classes_that_the_network_does_not_use_need_no_trust(command: Callable, own: None):
    overrides = ["experiment=smoke", "logger=none", "figures=false", "trainer.max_epochs=1"]
    assert command("train")(*overrides, *BRING["callback"], "hydra.run.dir=run").code == 0
    done = command("predict")("run=run", f"input={ROWS}", "output=scores.parquet")
    assert done.code == 0, done.err
    assert len(analysis.gate_weights("run")) == 2


@pytest.mark.slow
def test_a_sweep_with_own_classes_is_resumed(own: None):
    arguments = ["-m", "experiment=smoke", "logger=none", "figures=false", "trainer.max_epochs=1"]
    arguments += [*BRING["callback"], "seed=0,1", "hydra.sweep.dir=sweep"]
    assert processes.run(main, *arguments).returncode == 0
    Path("sweep/1/metrics.json").unlink()
    assert processes.run(main, *arguments).returncode == 0
    assert Path("sweep/1/metrics.json").exists()


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "torch.hub.load", "builtins.eval", "mmoe.run.load", "mmoe.no.Such"],
)
def test_a_configuration_may_only_build_trusted_classes(tmp_path: Path, target: str):
    c = config("data.source=sample", "callbacks=null", "logger=none", *MONITOR)
    schema = build(c, "data").schema
    c.inputs.numeric = {"_target_": target, "_partial_": True}
    run_folder.start(tmp_path, stored_config.portable_yaml(c), schema)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    with pytest.raises(UserError, match=f"^inputs.numeric._target_={target}: a run folder may build modules"):
        load(tmp_path).network()


def test_every_shipped_configuration_is_trusted():
    for experiment in ("census", "census_paddlerec"):
        check_targets(plain(f"experiment={experiment}"))
    check_targets(plain("data=paddlerec"))
    for logger in ("csv", "tensorboard", "wandb", "mlflow"):
        check_targets(plain(f"logger={logger}"))


def plain(*overrides: str) -> dict:
    return OmegaConf.to_container(config(*overrides, *MONITOR), resolve=False)
