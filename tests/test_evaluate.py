"""`python -m mmoe.evaluate` on run folders that `mmoe.train` wrote."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import sample_lines
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from mmoe.training import stored_config


@pytest.fixture
def evaluate(command):
    return command("evaluate")


def test_an_evaluation_from_python_prints_nothing(smoke_run: Path):
    script = f"import mmoe; mmoe.load({str(smoke_run)!r}).evaluate(resamples=0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_best_checkpoint_has_the_numbers_that_training_printed(evaluate, smoke_run: Path, split: str):
    result = evaluate(f"run={smoke_run}", f"split={split}", "out=found.json", "resamples=200")
    assert result.code == 0, result.err
    found = json.loads(Path("found.json").read_text())
    trained = json.loads((smoke_run / "metrics.json").read_text())
    (line,) = found["checkpoints"]
    assert line["metrics"] == trained[split]  # to the last digit
    assert line["epoch"] == trained["epoch"]
    for task, values in line["metrics"].items():
        for name, value in values.items():
            low, high = line["intervals"][task][name]
            assert low < value < high
            assert f"{value:.4f} │ {low:.4f} to {high:.4f}" in result.out
    assert "5,000" in result.out
    assert "bundled sample" in result.out


def test_all_checkpoints_by_epoch(evaluate, train):
    assert train("experiment=smoke", "trainer.max_epochs=2", "logger=none", "hydra.run.dir=run").code == 0
    shutil.copy("run/checkpoints/last.ckpt", "run/checkpoints/epoch_002.ckpt")
    assert evaluate("run=run", "checkpoint=all", "resamples=0").code == 0
    found = json.loads(Path("run/evaluation_test_all.json").read_text())["checkpoints"]
    assert [line["checkpoint"] for line in found] == ["best", "epoch_002", "last", "previous"]
    by_name = {line["checkpoint"]: line for line in found}
    assert by_name["last"]["metrics"] == by_name["epoch_002"]["metrics"]
    assert by_name["last"]["epoch"] == 2
    assert "intervals" not in found[0]


def test_replicas_have_the_mean(evaluate, train):
    options = ["trainer.max_epochs=2", "+trainer.limit_train_batches=3", "logger=none", "replicas=3"]
    assert train("experiment=smoke", *options, "hydra.run.dir=run").code == 0
    assert evaluate("run=run", "resamples=50").code == 0
    (line,) = json.loads(Path("run/evaluation_test_best.json").read_text())["checkpoints"]
    assert line["metrics"] == json.loads(Path("run/metrics.json").read_text())["test"]
    assert line["epoch"] is None


def test_synthetic_rows_are_drawn_again(evaluate, train):
    small = ["data.rows=64", "data.batch_size=32", "data.eval_rows=50", "trainer.max_epochs=1", "logger=none"]
    assert train("experiment=synthetic", *small, "hydra.run.dir=run").code == 0
    assert evaluate("run=run", "resamples=50").code == 0
    (line,) = json.loads(Path("run/evaluation_test_best.json").read_text())["checkpoints"]
    assert line["metrics"] == json.loads(Path("run/metrics.json").read_text())["test"]
    refused = "mmoe.data.synthetic.SyntheticData cannot encode other rows with the run's schema"
    assert evaluate("run=run", "data.dir=.").err == f"error: data.dir=.: {refused}\n"


def test_other_files_are_encoded_as_the_run_was(evaluate, smoke_run: Path):
    lines = sample_lines("census-income.test")
    Path("other").mkdir()
    first = Path("other/census-income.data")
    first.write_text("".join(f"{line}\n" for line in sample_lines()[:500]), "latin-1")
    unseen = [line.replace("Private", "A class nobody has seen", 1) for line in lines[:2000]]
    with gzip.open("other/census-income.test.gz", "wt", encoding="latin-1") as file:
        file.write("".join(f"{line}\n" for line in unseen))
    result = evaluate(f"run={smoke_run}", "data.dir=other", "out=found.json", "resamples=0")
    assert result.code == 0, result.err
    found = json.loads(Path("found.json").read_text())
    assert found["row_origin"] == "custom"
    assert found["num_rows"] == 1000
    # A run on these rows would have other vocabularies. With those of this run, the codes fit the network.
    assert 0.5 < found["checkpoints"][0]["metrics"]["income"]["auroc"] <= 1


def test_results_of_other_files_have_a_name_of_their_own(evaluate, smoke_run: Path, census_dir: Path):
    shutil.copytree(smoke_run, "run")
    assert evaluate("run=run", "resamples=0").code == 0
    own = Path("run/evaluation_test_best.json").read_bytes()
    assert evaluate("run=run", "resamples=0", f"data.dir={census_dir}").code == 0
    assert Path("run/evaluation_test_best.json").read_bytes() == own
    assert json.loads(Path("run/evaluation_test_best_census.json").read_text())["row_origin"] == "custom"
    for name in ("metrics.json", "checkpoints/best.ckpt"):
        before = Path("run", name).read_bytes()
        result = evaluate("run=run", "resamples=0", f"out=run/{name}")
        assert (result.code, result.err) == (2, f"error: out=run/{name}: must not be a file of the run\n")
        assert Path("run", name).read_bytes() == before


def test_rows_that_have_changed_are_refused(evaluate, train, census_dir: Path):
    options = [
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=3",
        "logger=none",
        f"data.dir={census_dir}",
    ]
    assert train("experiment=smoke", *options, "data.source=auto", "hydra.run.dir=run").code == 0
    path = census_dir / "census-income.test"
    path.write_text(path.read_text("latin-1").replace("Private", "Publican", 1), "latin-1")
    result = evaluate("run=run")
    assert result.code == 2
    assert result.err.startswith(
        f"error: data.dir={census_dir}: the files have changed since the run (schema.json has"
    )
    assert not Path("run/evaluation_test_best.json").exists()


def test_a_run_must_be_named(evaluate, monkeypatch: pytest.MonkeyPatch):
    assert evaluate("split=val").err == "error: run=...: must be given\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # shows the traceback
    with pytest.raises(MissingMandatoryValue):
        evaluate("split=val")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split=train"], "split=train: must be val or test"),
        (["checkpoint=first"], "checkpoint=first: must be all or one of "),
        (["run=nowhere"], "nowhere/config.yaml: missing; is nowhere a run folder?"),
        (["resamples=-1"], "resamples=-1: must be an integer of at least 0"),
        (["data.dir=nowhere"], "data.dir=nowhere: must be a directory with"),
    ],
)
def test_mistakes(evaluate, smoke_run: Path, arguments: list[str], message: str):
    before = sorted(smoke_run.rglob("*"))
    result = evaluate(f"run={smoke_run}", *arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1
    assert sorted(smoke_run.rglob("*")) == before


def test_a_crafted_folder_runs_nothing(evaluate, smoke_run: Path):
    shutil.copytree(smoke_run, "crafted")
    config = OmegaConf.load("crafted/config.yaml")
    config.learner.optimizer._target_ = "os.system"
    Path("crafted/config.yaml").write_text(stored_config.to_yaml(config))
    result = evaluate("run=crafted")
    assert result.code == 2
    assert "learner.optimizer._target_=os.system: a run folder may build" in result.err

    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("owned").absolute(),))

    shutil.copy(smoke_run / "config.yaml", "crafted/config.yaml")
    torch.save({"state_dict": {}, "epoch": Evil()}, "crafted/checkpoints/best.ckpt")
    result = evaluate("run=crafted")
    assert result.code == 2
    assert result.err.startswith("error: crafted/checkpoints/best.ckpt: ")
    assert not Path("owned").exists()
