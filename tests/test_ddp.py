"""Several real processes train one network together, by the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import balanced_table, only_run, sample_lines
from omegaconf import OmegaConf
from scipy.special import logit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmoe import load
from mmoe.tasks import Binary
from mmoe.training import stored_config
from mmoe.training.task_metrics import TaskMetrics

QUICK = ["experiment=smoke", "figures=false", "trainer.max_epochs=1"]
STEPS = "+trainer.limit_train_batches=6"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]


def run(*arguments: str, start: tuple[str, ...] = (sys.executable, "-m")) -> subprocess.CompletedProcess[str]:
    command = [*start, "mmoe.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def weights(folder: Path, name: str = "last") -> torch.Tensor:
    state = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.double().flatten() for value in state.values()])


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Weights are the same, apart from rounding.

    If a gradient is close to 0, rounding can change Adam's step, so a few weights may differ more.
    """
    assert torch.isclose(one, other, atol=1e-5, rtol=0).double().mean() > 0.999
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def assert_alike(one: Path, other: Path) -> None:
    """Steps, weights and metrics of two runs are the same, apart from rounding.

    Rounding in the weights can swap rows whose predictions are almost equal, and each swapped pair changes an
    AUROC by up to 1e-5.
    """
    first, second = metrics_of(one), metrics_of(other)
    assert first["steps"] == second["steps"]
    assert first["global_batch"] == second["global_batch"]
    assert_close(weights(one), weights(other))
    for split in ("val", "test"):
        for task, values in first[split].items():
            assert second[split][task] == pytest.approx(values, abs=1e-4)


def test_two_processes_are_one_run(train: Callable, command: Callable):
    """The same batches as one process has, one folder, one log, one table, and each row counted once."""
    done = run(*QUICK, STEPS, "trainer=ddp_cpu", "data.batch_size=32", "trainer.log_every_n_steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best epoch (bundled sample)") == 1
    assert "6 steps of 64 rows in 2 processes, learning rate 0.005\n" in done.stdout
    folder = only_run()
    assert len({path.name.split(".")[-2] for path in folder.glob("events.out.tfevents*")}) == 1  # one writer
    assert len(EventAccumulator(str(folder)).Reload().Scalars("train/loss")) == 6
    assert train(*QUICK, STEPS, "data.batch_size=64", "hydra.run.dir=alone", "logger=none").code == 0
    assert_alike(folder, Path("alone"))

    frame = pd.read_parquet(folder / "predictions.parquet")
    assert frame["row"].is_unique
    assert len(frame) == 5000
    for task in ("income", "marital"):
        logits = torch.tensor(logit(frame[f"{task}_probability"]))[:, None]
        labels = torch.tensor(frame[f"{task}_label"])[:, None].float()
        again = TaskMetrics([Binary("c", ("x",), name=task)])("test", logits, labels)
        for name in Binary.METRICS:
            expected = pytest.approx(again[f"test/{task}/{name}"].item(), abs=1e-6)
            assert metrics_of(folder)["test"][task][name] == expected
    assert command("evaluate")(f"run={folder}", "out=found.json").code == 0
    (evaluated,) = json.loads(Path("found.json").read_text())["checkpoints"]
    for task, values in metrics_of(folder)["test"].items():
        assert evaluated["metrics"][task] == pytest.approx(values, abs=1e-6)


def test_two_processes_with_unknown_labels_and_weights_are_one_run(train: Callable):
    """Each loss is divided by the weights in all processes, although a process may have few known labels."""
    masks = ["+data.tasks.marital.where={sex: [Female]}", "+data.tasks.income.weight=instance_weight"]
    given = [*QUICK, STEPS, *masks, "logger=none", "learner.optimizer.lr=1e-3"]
    done = run(*given, "trainer=ddp_cpu", "data.batch_size=8")
    assert done.returncode == 0, done.stderr
    folder = only_run()
    assert train(*given, "data.batch_size=16", "hydra.run.dir=alone").code == 0
    assert_alike(folder, Path("alone"))
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert 0.3 < frame["marital_label"].isna().mean() < 0.7
    assert frame["income_label"].notna().all()


@pytest.mark.slow
def test_processes_that_torchrun_started_have_one_folder(own_cache: Path):
    """The command names no folder. Rows are encoded once, and the table of results is printed once."""
    done = run(*QUICK, STEPS, "trainer=ddp_cpu", start=tuple(TORCHRUN))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best epoch (bundled sample)") == 1
    folder = only_run()
    assert metrics_of(folder)["processes"] == 2
    assert len({path.name.split(".")[-2] for path in folder.glob("events.out.tfevents*")}) == 1
    assert len(list(own_cache.glob("*.npz"))) == 1
    found = load(folder).network()
    assert all(torch.isfinite(parameter).all() for parameter in found.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("ddp_cpu", "cpu"), ("cpu", "ddp_cpu")])
def test_a_run_resumes_with_another_number_of_processes(before: str, after: str):
    options = ["experiment=smoke", "figures=false", "logger=none", "trainer.max_epochs=2", STEPS]
    sizes = {"cpu": "data.batch_size=64", "ddp_cpu": "data.batch_size=32"}
    assert run(*options, f"trainer={before}", sizes[before], "hydra.run.dir=whole").returncode == 0
    # The first epoch alone, then as if it had been stopped there.
    cut = Path("cut")
    first = [*options, f"trainer={before}", sizes[before], "hydra.run.dir=cut", "+trainer.max_steps=6"]
    assert run(*first).returncode == 0
    (cut / "metrics.json").unlink()
    config = OmegaConf.load(cut / "config.yaml")
    del config.trainer["max_steps"]
    (cut / "config.yaml").write_text(stored_config.to_yaml(config))
    done = run("resume=cut", f"trainer={after}")
    assert done.returncode == 0, done.stderr
    assert metrics_of(cut)["processes"] == {"cpu": 1, "ddp_cpu": 2}[after]
    assert metrics_of(cut)["epochs"] == 2
    assert_alike(cut, Path("whole"))


@pytest.mark.slow
def test_a_job_of_a_sweep_can_have_several_processes(tmp_path: Path):
    Path("own").mkdir()
    Path("own/mine.yaml").write_text("defaults: [train, _self_]\nseed: 7\n")
    Path("more/trainer").mkdir(parents=True)
    Path("more/trainer/two.yaml").write_text("defaults: [ddp_cpu]\n")
    searched = f"hydra.searchpath=['file://{Path('more').absolute()}']"
    sweep = ["-m", searched, *QUICK, STEPS, "trainer=two", "logger=none", "hydra.sweep.dir='of a=b'"]
    done = run("--config-dir=own", "--config-name=mine", *sweep, "model.num_experts=2,0")
    assert done.returncode == 2, done.stderr
    folder = Path("of a=b")
    assert f"failed jobs: 1\n  {folder}/1 (" in done.stderr
    assert {path.name for path in folder.iterdir()} == {"0", "1", "multirun.yaml"}
    assert metrics_of(folder / "0")["processes"] == 2
    config = OmegaConf.load(folder / "0/config.yaml")
    assert (config.model.num_experts, config.seed) == (2, 7)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_of_several_processes_with_its_epoch_kept():
    sweep = ["-m", *QUICK, "trainer=ddp_cpu", "logger=none", "hydra.sweep.dir=sweep", "seed=1,2"]
    sweep += ["trainer.max_epochs=1000", "callbacks.early_stopping=null"]
    command = [sys.executable, "-m", "mmoe.train", *sweep]
    with Path("said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        deadline = time.time() + 120
        while not Path("sweep/0/checkpoints/last.ckpt").exists() and time.time() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) == 130
    assert "stopped; resume with: python -m mmoe.train resume=sweep/0\n" in Path("said").read_text()
    assert not Path("sweep/1").exists()
    torch.load("sweep/0/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_remainder_weighs_by_its_rows(train: Callable, tmp_path: Path):
    """Two processes get 3 and 2 of the last 5 rows; every row must weigh the same in the gradient."""
    folder = Path("few")
    folder.mkdir()
    for name in ("census-income.data", "census-income.test"):
        every = sorted(sample_lines(name), key=lambda line: line.endswith("50000+."))
        lines = [*every[:49], *every[-20:]]  # 64 + 5, with enough of both classes for both halves
        (folder / name).write_text("".join(f"{line}\n" for line in lines), "latin-1")
    options = ["experiment=smoke", "data.source=auto", "data.dir=few", "figures=false", "logger=none"]
    options += ["trainer.max_epochs=5", "model.activation=tanh"]
    options += ["learner.optimizer={_target_: torch.optim.SGD, _partial_: true, lr: 0.5}"]
    done = run(*options, "trainer=ddp_cpu", "data.batch_size=32", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert train(*options, "data.batch_size=64", "hydra.run.dir=one").code == 0
    torch.testing.assert_close(weights(Path("one")), weights(Path("two")), atol=1e-5, rtol=0)


DIVERGES_IN_ONE_PROCESS = """
from torch import distributed
from mmoe import MMoE, Output

class Diverges(MMoE):
    def forward(self, x):
        logits, gates = super().forward(x)
        is_bad = distributed.is_initialized() and distributed.get_rank() == 1 and not self.training
        return Output(logits / 0 if is_bad else logits, gates)
"""


@pytest.mark.slow
def test_a_divergence_in_another_process_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "diverges_in_one_process.py").write_text(DIVERGES_IN_ONE_PROCESS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = run(*QUICK, STEPS, "trainer=ddp_cpu", "model._target_=diverges_in_one_process.Diverges")
    assert done.returncode == 2
    where = "training diverged in step 6 (epoch 1, batch 6): the logits of income, marital are not finite"
    assert f"error: {where}" in done.stderr
    assert done.stderr.count("error: ") == 1


@pytest.mark.slow
def test_shares_must_be_equal(train: Callable):
    assert train(*QUICK, STEPS, "data.batch_size=33", "hydra.run.dir=cut", "logger=none").code == 0
    Path("cut/metrics.json").unlink()
    done = run("resume=cut", "trainer=ddp_cpu")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert (
        "error: trainer.devices: the run's 33 rows per step cannot be divided equally among 2 processes"
        in done.stderr
    )


@pytest.mark.slow
def test_half_precision(train: Callable):
    """Two processes in half precision predict about the same as one."""
    half = [*QUICK, STEPS, "trainer.precision=bf16-mixed", "logger=none"]
    assert run(*half, "trainer=ddp_cpu", "data.batch_size=32", "hydra.run.dir=two").returncode == 0
    assert train(*half, "data.batch_size=64", "hydra.run.dir=one").code == 0
    frames = [pd.read_parquet(f"{folder}/predictions.parquet") for folder in ("one", "two")]
    np.testing.assert_allclose(*frames, atol=0.01)
    assert metrics_of(Path("two"))["processes"] == 2


@pytest.mark.slow
def test_compiled():
    assert run(*QUICK, STEPS, "trainer=ddp_cpu", "compile=true", "hydra.run.dir=two").returncode == 0
    assert run(*QUICK, STEPS, "trainer=ddp_cpu", "hydra.run.dir=plain").returncode == 0
    assert_close(weights(Path("two")), weights(Path("plain")))


@pytest.mark.slow
def test_on_the_real_rows(real_dir: Path):
    """An epoch of one process and of two, on the same batches."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = ["experiment=census", "figures=false", "logger=none", f"data.dir={real_dir}"]
    options += ["trainer.max_epochs=1", "+trainer.limit_train_batches=100"]
    assert run(*options, "data.batch_size=512", "hydra.run.dir=one").returncode == 0
    assert run(*options, "data.batch_size=256", "trainer=ddp_cpu", "hydra.run.dir=two").returncode == 0
    assert_alike(Path("one"), Path("two"))


@pytest.mark.slow
def test_groups_that_two_processes_share_count_once(train: Callable):
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"user": random.integers(0, 9, 601), "amount": random.normal(size=601)})
    rows["clicked"] = (random.random(601) < 1 / (1 + np.exp(-rows["amount"]))).astype(int)
    rows.to_csv("train.csv", index=False)
    Path("conf/data").mkdir(parents=True)
    config = {
        "_target_": "mmoe.data.table_data.TableData", "train": "train.csv", "test": {"fraction": 0.3},
        "columns": {"amount": "numeric"}, "tasks": {"click": {"column": "clicked"}}, "group_by": "user",
        "batch_size": 32,
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), "conf/data/mine.yaml")
    options = ["--config-dir=conf", "data=mine", "figures=false", "logger=none", "trainer.max_epochs=1"]
    done = run(*options, "trainer=ddp_cpu", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert train(*options, "data.batch_size=64", "hydra.run.dir=one").code == 0
    one, two = (metrics_of(Path(name))["test"]["click"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
    assert 0.5 < one["grouped_auroc"] < 1


@pytest.mark.parametrize(
    "balance",
    [
        "gradvac",
        "famo",
        *(
            pytest.param(b, marks=pytest.mark.slow)
            for b in ("uncertainty", "graddrop", "dwa", "random_loss_weights")
        ),
    ],
)
def test_two_processes_balance_as_one(train: Callable, balance: str):
    """Losses and gradients are averaged over processes first, also if a process has few known labels."""
    balanced_table()
    options = ["--config-dir=conf", "data=mine", "trainer.max_epochs=2", "logger=none", "figures=false"]
    options += [f"balance={balance}", "learner.optimizer.lr=1e-3"]
    done = run(*options, "trainer=ddp_cpu", "data.batch_size=8", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert train(*options, "data.batch_size=16", "hydra.run.dir=one").code == 0
    assert_alike(Path("one"), Path("two"))
    one, two = (pd.read_csv(f"{folder}/history.csv").filter(like="balance/") for folder in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)
